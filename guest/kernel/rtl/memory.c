/* Bytes, strings, random numbers, boot options. */
#include "nt.h"
#include "mm/mm.h"

void *memcpy(void *to, const void *from, SIZE_T size) {
    void *result = to;
    SIZE_T words = size >> 3, rest = size & 7;
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(rest) : : "memory");
    return result;
}

void *memmove(void *to, const void *from, SIZE_T size) {
    UCHAR *t = to;
    const UCHAR *f = from;
    if (t <= f || t >= f + size) return memcpy(to, from, size);
    while (size--) t[size] = f[size];
    return to;
}

void *memset(void *to, int value, SIZE_T size) {
    void *p = to;
    SIZE_T words = size >> 3, rest = size & 7;
    ULONG64 v = (UCHAR)value * 0x0101010101010101ull;
    __asm__ volatile("rep stosq" : "+D"(p), "+c"(words) : "a"(v) : "memory");
    __asm__ volatile("rep stosb" : "+D"(p), "+c"(rest) : "a"(v) : "memory");
    return to;
}

int memcmp(const void *a, const void *b, SIZE_T size) {
    const UCHAR *x = a, *y = b;
    for (SIZE_T i = 0; i < size; i++)
        if (x[i] != y[i]) return x[i] - y[i];
    return 0;
}

SIZE_T strlen(const char *s) {
    SIZE_T n = 0;
    while (s[n]) n++;
    return n;
}

int strncmp(const char *a, const char *b, SIZE_T n) {
    for (; n--; a++, b++)
        if (*a != *b || !*a) return (UCHAR)*a - (UCHAR)*b;
    return 0;
}

int strcmp(const char *a, const char *b) { return strncmp(a, b, ~0ull); }

SIZE_T wcslen(PCWSTR s) {
    SIZE_T n = 0;
    while (s[n]) n++;
    return n;
}

WCHAR RtlUpcaseUnicodeChar(WCHAR c) {
    if ((c >= 'a' && c <= 'z') || (c >= 0xE0 && c <= 0xFE && c != 0xF7)) return c - 32;
    return c;
}

int RtlCompareWideNoCase(PCWSTR a, SIZE_T a_length, PCWSTR b, SIZE_T b_length) {
    for (SIZE_T i = 0; i < a_length && i < b_length; i++) {
        int difference = RtlUpcaseUnicodeChar(a[i]) - RtlUpcaseUnicodeChar(b[i]);
        if (difference) return difference;
    }
    return a_length < b_length ? -1 : a_length > b_length;
}

void RtlInitUnicodeString(UNICODE_STRING *s, PCWSTR text) {
    s->Length = (USHORT)(wcslen(text) * 2);
    s->MaximumLength = s->Length + 2;
    s->Buffer = (WCHAR *)text;
}

NTSTATUS RtlDuplicateUnicodeString(UNICODE_STRING *to, PCWSTR text, SIZE_T characters) {
    if (characters > 0x7FFE) return STATUS_INVALID_PARAMETER;
    WCHAR *copy = ExAllocatePool((characters + 1) * 2, 'rtSU');
    if (!copy) return STATUS_INSUFFICIENT_RESOURCES;
    memcpy(copy, text, characters * 2);
    copy[characters] = 0;
    to->Buffer = copy;
    to->Length = (USHORT)(characters * 2);
    to->MaximumLength = to->Length + 2;
    return STATUS_SUCCESS;
}

static ULONG64 RtlpSeed;

ULONG64 RtlRandom64(void) { /* splitmix64 over the loader's seed */
    if (!RtlpSeed) RtlpSeed = KeLoaderBlock->Random;
    ULONG64 x = __atomic_add_fetch(&RtlpSeed, 0x9E3779B97F4A7C15ull, __ATOMIC_RELAXED);
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}

const char *KeOptionText(const char *name, ULONG *length) {
    SIZE_T n = strlen(name);
    const char *all = KeLoaderBlock->OptionsText;
    for (const char *s = all; *s; s++) {
        if (s != all && s[-1] != ' ' && s[-1] != '/') continue;
        if (strncmp(s, name, n) || (s[n] && s[n] != '=' && s[n] != ' ')) continue;
        s += n + (s[n] == '=');
        ULONG end = 0;
        while (s[end] && s[end] != ' ') end++;
        if (length) *length = end;
        return s;
    }
    return NULL;
}

ULONG64 KeOption(const char *name, ULONG64 otherwise) {
    ULONG length;
    const char *s = KeOptionText(name, &length);
    if (!s) return otherwise;
    if (!length) return 1;
    ULONG64 value = 0, base = 10;
    if (s[0] == '0' && (s[1] | 32) == 'x') s += 2, base = 16;
    for (;; s++) {
        ULONG64 digit = *s >= '0' && *s <= '9' ? (ULONG64)(*s - '0') : (ULONG64)(UCHAR)((*s | 32) - 'a') + 10;
        if (digit >= base) return value;
        value = value * base + digit;
    }
}

NTSTATUS RtlCopyFromUser(void *to, const void *user, SIZE_T size) { return MmCopyFromUser(to, user, size); }
NTSTATUS RtlCopyToUser(void *user, const void *from, SIZE_T size) { return MmCopyToUser(user, from, size); }
