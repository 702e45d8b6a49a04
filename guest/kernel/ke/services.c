/* The table of system services, made from kernel/services.h: entries as on x64 NT, the routine's distance from the table in
 * the upper 28 bits, the number of arguments on the stack in the lower 4. */
#include "nt.h"
#include "ki.h"
#include "services.h"

#define DECLARE(name, arguments) NTSTATUS name();
#pragma clang diagnostic ignored "-Wstrict-prototypes"
SYSTEM_SERVICES(DECLARE)

#define POINTER(name, arguments) (void *)name,
#define STACK_ARGUMENTS(name, arguments) (arguments) > 4 ? (arguments) - 4 : 0,
static void *const KiServiceRoutines[] = {SYSTEM_SERVICES(POINTER)};
static const UCHAR KiServiceArguments[] = {SYSTEM_SERVICES(STACK_ARGUMENTS)};
LONG KiServiceTable[ARRAYSIZE(KiServiceRoutines)];
ULONG KiServiceLimit = ARRAYSIZE(KiServiceRoutines);

struct {
    LONG *Base;
    ULONG *Count;
    ULONG Limit;
    UCHAR *Number;
} KeServiceDescriptorTable;

void KiInitializeServices(void) {
    for (ULONG i = 0; i < ARRAYSIZE(KiServiceRoutines); i++)
        KiServiceTable[i] = (LONG)(((UCHAR *)KiServiceRoutines[i] - (UCHAR *)KiServiceTable) << 4) | KiServiceArguments[i];
    KeServiceDescriptorTable.Base = KiServiceTable;
    KeServiceDescriptorTable.Limit = ARRAYSIZE(KiServiceRoutines);
    KeServiceDescriptorTable.Number = (UCHAR *)KiServiceArguments;
}
