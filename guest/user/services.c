/* services.exe: starts the service hosts, states.exe (every page state, steadily) and notepad.exe, then stays.
 * Boot options: SERVICES=n hosts (default 4), STATES=0, NOTEPAD=0, what notepad.exe takes: THREADS, WRITES, PACE;
 * LEDGER=rounds and LEDGERWAIT=milliseconds: ledger.exe, off without; SPAWN=n, SPAWNPACE and SPAWNWAIT=milliseconds,
 * SPAWNTHREADS=n: spawner.exe, off without; TICKS=n, TICKERS=n threads and TICKWAIT=milliseconds: ticker.exe, off without;
 * NET=n, NETPACE and NETWAIT=milliseconds, NETRELOAD=n: packets.exe, off without; WOW64=n threads, WOW64WRITES of each,
 * WOW64PACE=milliseconds, WOW64WORK=rounds: editor32.exe, a 32-bit program, off without; LATEFILE=megabytes: one more paging
 * file, made when the boot is over, as a user may from the control panel. */
#include "user.h"

/* Starts a program with the words of `format`, in which its name comes first. */
static void ScStart(PCWSTR image, const char *format, ULONG64 first, ULONG64 second, ULONG64 third, ULONG64 fourth) {
    char words[128];
    WCHAR line[128];
    SIZE_T length = RtlFormatText(words, sizeof words, format, first, second, third, fourth);
    for (SIZE_T i = 0; i <= length; i++) line[i] = (WCHAR)words[i];
    RtlStartProgram(image, line);
}

void NtProcessStartup(PEB *peb) {
    LONG64 late = (LONG64)(RtlBootOption("LATEFILE", 0) << 20);
    (void)peb;
    if (late) {
        UNICODE_STRING name;
        RtlInitUnicodeString(&name, L"\\??\\C:\\latefile.sys");
        RtlNote("services: late paging file: %x", (ULONG64)(ULONG)NtCreatePagingFile(&name, &late, &late, 0));
    }
    NtSetSystemInformation(SystemStoreInformation, NULL, 0); /* as SysMain asks for memory compression */
    for (ULONG64 n = RtlBootOption("SERVICES", 4); n; n--)
        RtlStartProgram(L"C:\\Windows\\System32\\svchost.exe", L"svchost.exe -k minint");
    if (RtlBootOption("STATES", 1)) RtlStartProgram(L"C:\\Windows\\System32\\states.exe", L"states.exe");
    if (RtlBootOption("NOTEPAD", 1))
        ScStart(L"C:\\Windows\\System32\\notepad.exe", "notepad.exe threads=%u writes=%u pace=%u", RtlBootOption("THREADS", 3),
                RtlBootOption("WRITES", 0), RtlBootOption("PACE", 20), 0);
    if (RtlBootOption("LEDGER", 0))
        ScStart(L"C:\\Windows\\System32\\ledger.exe", "ledger.exe rounds=%u wait=%u", RtlBootOption("LEDGER", 8),
                RtlBootOption("LEDGERWAIT", 0), 0, 0);
    if (RtlBootOption("SPAWN", 0))
        ScStart(L"C:\\Windows\\System32\\spawner.exe", "spawner.exe count=%u pace=%u wait=%u threads=%u",
                RtlBootOption("SPAWN", 10), RtlBootOption("SPAWNPACE", 20), RtlBootOption("SPAWNWAIT", 0),
                RtlBootOption("SPAWNTHREADS", 1));
    if (RtlBootOption("TICKS", 0))
        ScStart(L"C:\\Windows\\System32\\ticker.exe", "ticker.exe count=%u threads=%u wait=%u", RtlBootOption("TICKS", 100),
                RtlBootOption("TICKERS", 4), RtlBootOption("TICKWAIT", 0), 0);
    if (RtlBootOption("NET", 0))
        ScStart(L"C:\\Windows\\System32\\packets.exe", "packets.exe count=%u pace=%u wait=%u reload=%u", RtlBootOption("NET", 0),
                RtlBootOption("NETPACE", 20), RtlBootOption("NETWAIT", 0), RtlBootOption("NETRELOAD", 0));
    if (RtlBootOption("WOW64", 0))
        ScStart(L"C:\\Windows\\SysWOW64\\editor32.exe", "editor32.exe threads=%u writes=%u pace=%u work=%u",
                RtlBootOption("WOW64", 1), RtlBootOption("WOW64WRITES", 0), RtlBootOption("WOW64PACE", 20),
                RtlBootOption("WOW64WORK", 1));
    for (;;) RtlSleep(1000);
}
