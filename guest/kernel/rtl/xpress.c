/* Xpress' plain LZ77, as RtlCompressBuffer's COMPRESSION_FORMAT_XPRESS writes it: [MS-XCA] 2.3 and 2.4. General registers only. */
#include "../nt.h"

#define HASH(p) (((p)[0] << 7 ^ (p)[1] << 4 ^ (p)[2]) & (RTL_XPRESS_TABLE - 1))
#define FARTHEST 0x2000

static UCHAR *Put16(UCHAR *to, ULONG value) {
    to[0] = (UCHAR)value;
    to[1] = (UCHAR)(value >> 8);
    return to + 2;
}

static void Put32(UCHAR *to, ULONG value) { Put16(Put16(to, value & 0xFFFF), value >> 16); }

/* A match's word, and how its length goes on: a nibble that two matches share, a byte, 16 bits. */
static UCHAR *PutMatch(UCHAR *to, ULONG distance, ULONG length, UCHAR **nibble) {
    length -= 3;
    to = Put16(to, (distance - 1) << 3 | MIN(length, 7));
    if (length < 7) return to;
    length -= 7;
    if (*nibble) {
        **nibble |= (UCHAR)(MIN(length, 15) << 4);
        *nibble = NULL;
    } else {
        *nibble = to;
        *to++ = (UCHAR)MIN(length, 15);
    }
    if (length < 15) return to;
    length -= 15;
    *to++ = (UCHAR)MIN(length, 255);
    return length < 255 ? to : Put16(to, length + 22);
}

/* Bytes written, or 0 when they do not fit in `room`. `table` holds RTL_XPRESS_TABLE entries. Size: less than 64 KB. */
ULONG RtlCompressXpress(const UCHAR *from, ULONG size, UCHAR *to, ULONG room, USHORT *table) {
    UCHAR *start = to, *flags_at = to, *nibble = NULL;
    ULONG flags = 0, count = 0, at = 0;
    memset(table, 0xFF, RTL_XPRESS_TABLE * sizeof *table);
    to += 4;
    while (at < size) {
        ULONG length = 0, found = 0xFFFF;
        if (to + 16 > start + room) return 0;
        if (at + 3 <= size) {
            found = table[HASH(from + at)];
            table[HASH(from + at)] = (USHORT)at;
        }
        if (found != 0xFFFF && at - found <= FARTHEST)
            while (at + length < size && from[found + length] == from[at + length]) length++;
        flags <<= 1;
        if (length >= 3) {
            flags |= 1;
            to = PutMatch(to, at - found, length, &nibble);
            at += length;
        } else {
            *to++ = from[at++];
        }
        if (++count == 32) {
            Put32(flags_at, flags);
            flags_at = to;
            to += 4;
            count = flags = 0;
        }
    }
    Put32(flags_at, count ? flags << (32 - count) | (1u << (32 - count)) - 1 : 0xFFFFFFFF);
    return (ULONG)(to - start);
}

/* The `size` bytes that `from` holds; FALSE when it holds others. */
BOOLEAN RtlDecompressXpress(const UCHAR *from, ULONG length, UCHAR *to, ULONG size) {
    const UCHAR *end = from + length, *nibble = NULL;
    ULONG flags = 0, left = 0, at = 0;
    while (at < size) {
        ULONG word, run, distance;
        if (!left) {
            if (end - from < 4) return FALSE;
            flags = from[0] | from[1] << 8 | from[2] << 16 | (ULONG)from[3] << 24;
            from += 4;
            left = 32;
        }
        if (!(flags >> --left & 1)) {
            if (from == end) return FALSE;
            to[at++] = *from++;
            continue;
        }
        if (end - from < 2) return FALSE;
        word = from[0] | from[1] << 8;
        from += 2;
        distance = (word >> 3) + 1;
        run = word & 7;
        if (run == 7) {
            if (nibble) {
                run = *nibble >> 4;
                nibble = NULL;
            } else {
                if (from == end) return FALSE;
                nibble = from;
                run = *from++ & 15;
            }
            if (run == 15) {
                if (from == end) return FALSE;
                run = *from++;
                if (run == 255) {
                    if (end - from < 2) return FALSE;
                    run = from[0] | from[1] << 8;
                    from += 2;
                    if (run < 22) return FALSE;
                    run -= 22;
                }
                run += 15;
            }
            run += 7;
        }
        run += 3;
        if (distance > at || run > size - at) return FALSE;
        for (; run; run--, at++) to[at] = to[at - distance];
    }
    return TRUE;
}
