/* printf's smaller brother. */
#include "nt.h"

typedef struct _RTLP_OUT {
    CHAR *Buffer;
    SIZE_T Size, Used;
} RTLP_OUT;

static void RtlpPut(RTLP_OUT *out, CHAR c) {
    if (out->Used + 1 < out->Size) out->Buffer[out->Used++] = c;
}

/* One UTF-16 unit as JSON text: UTF-8, escaped where JSON asks for it. Surrogates are written as \u escapes. */
static void RtlpPutWide(RTLP_OUT *out, WCHAR c) {
    static const char hex[] = "0123456789abcdef";
    if (c == '"' || c == '\\') RtlpPut(out, '\\'), RtlpPut(out, (CHAR)c);
    else if (c < 0x20 || (c >= 0xD800 && c < 0xE000)) {
        RtlpPut(out, '\\'), RtlpPut(out, 'u');
        for (int shift = 12; shift >= 0; shift -= 4) RtlpPut(out, hex[c >> shift & 15]);
    } else if (c < 0x80) RtlpPut(out, (CHAR)c);
    else if (c < 0x800) RtlpPut(out, (CHAR)(0xC0 | c >> 6)), RtlpPut(out, (CHAR)(0x80 | (c & 63)));
    else RtlpPut(out, (CHAR)(0xE0 | c >> 12)), RtlpPut(out, (CHAR)(0x80 | (c >> 6 & 63))), RtlpPut(out, (CHAR)(0x80 | (c & 63)));
}

static void RtlpPutNumber(RTLP_OUT *out, ULONG64 value, ULONG base, BOOLEAN upper, BOOLEAN minus, ULONG width, BOOLEAN zero, BOOLEAN left) {
    CHAR digits[24];
    ULONG n = 0;
    do {
        ULONG digit = (ULONG)(value % base);
        digits[n++] = (CHAR)(digit < 10 ? '0' + digit : (upper ? 'A' : 'a') + digit - 10);
        value /= base;
    } while (value);
    ULONG total = n + minus;
    if (!zero && !left) for (; total < width; total++) RtlpPut(out, ' ');
    if (minus) RtlpPut(out, '-');
    if (zero && !left) for (; total < width; total++) RtlpPut(out, '0');
    while (n) RtlpPut(out, digits[--n]);
    if (left) for (; total < width; total++) RtlpPut(out, ' ');
}

SIZE_T RtlFormatV(CHAR *buffer, SIZE_T size, const char *f, __builtin_va_list arguments) {
    RTLP_OUT out = {buffer, size, 0};
    for (; *f; f++) {
        if (*f != '%') {
            RtlpPut(&out, *f);
            continue;
        }
        BOOLEAN zero = FALSE, left = FALSE, wide = FALSE, prefix = FALSE;
        ULONG width = 0, bytes = 4;
        SIZE_T precision = ~0ull;
        for (f++; *f == '0' || *f == '-' || *f == '#'; f++) zero |= *f == '0', left |= *f == '-', prefix |= *f == '#';
        for (; *f >= '0' && *f <= '9'; f++) width = width * 10 + (ULONG)(*f - '0');
        if (*f == '.') {
            if (*++f == '*') precision = (SIZE_T)__builtin_va_arg(arguments, ULONG), f++;
            else for (precision = 0; *f >= '0' && *f <= '9'; f++) precision = precision * 10 + (SIZE_T)(*f - '0');
        }
        if (*f == 'I' && f[1] == '6' && f[2] == '4') bytes = 8, f += 3;
        if (*f == 'z') bytes = 8, f++;
        if (*f == 'l' && f[1] == 'l') bytes = 8, f += 2;
        if (*f == 'l') f++;
        if (*f == 'w') wide = TRUE, f++;
        switch (*f) {
        case 'd':
        case 'i': {
            LONG64 v = bytes == 8 ? __builtin_va_arg(arguments, LONG64) : __builtin_va_arg(arguments, LONG);
            RtlpPutNumber(&out, v < 0 ? 0 - (ULONG64)v : (ULONG64)v, 10, FALSE, v < 0, width, zero, left);
            break;
        }
        case 'u':
        case 'x':
        case 'X': {
            ULONG64 v = bytes == 8 ? __builtin_va_arg(arguments, ULONG64) : __builtin_va_arg(arguments, ULONG);
            if (prefix) RtlpPut(&out, '0'), RtlpPut(&out, 'x');
            RtlpPutNumber(&out, v, *f == 'u' ? 10 : 16, *f == 'X', FALSE, width, zero, left);
            break;
        }
        case 'p':
            RtlpPut(&out, '0'), RtlpPut(&out, 'x');
            RtlpPutNumber(&out, (ULONG64)__builtin_va_arg(arguments, void *), 16, FALSE, FALSE, width, zero, left);
            break;
        case 'c':
            RtlpPut(&out, (CHAR)__builtin_va_arg(arguments, int));
            break;
        case 's':
            if (wide) {
                const WCHAR *s = __builtin_va_arg(arguments, const WCHAR *);
                while (s && *s && precision--) RtlpPutWide(&out, *s++);
            } else {
                const char *s = __builtin_va_arg(arguments, const char *);
                SIZE_T n = 0;
                for (; s && precision-- && *s; n++) RtlpPut(&out, *s++);
                for (; n < width; n++) RtlpPut(&out, ' ');
            }
            break;
        case 'Z': {
            const UNICODE_STRING *s = __builtin_va_arg(arguments, const UNICODE_STRING *);
            for (SIZE_T i = 0; s && i < s->Length / 2u; i++) RtlpPutWide(&out, s->Buffer[i]);
            break;
        }
        case '%':
            RtlpPut(&out, '%');
            break;
        default:
            RtlpPut(&out, '?');
        }
    }
    if (size) buffer[out.Used] = 0;
    return out.Used;
}

SIZE_T RtlFormat(CHAR *buffer, SIZE_T size, const char *format, ...) {
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    SIZE_T used = RtlFormatV(buffer, size, format, arguments);
    __builtin_va_end(arguments);
    return used;
}
