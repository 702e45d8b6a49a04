/* SHA-256 (FIPS 180-4). */
#include "nt.h"

static const ULONG K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
    0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
    0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

#define ROTATE(x, n) ((x) >> (n) | (x) << (32 - (n)))

static void RtlpSha256Block(ULONG state[8], const UCHAR *block) {
    ULONG w[64], s[8];
    for (ULONG i = 0; i < 16; i++) w[i] = __builtin_bswap32(((const ULONG *)block)[i]);
    for (ULONG i = 16; i < 64; i++) {
        ULONG a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (ROTATE(a, 7) ^ ROTATE(a, 18) ^ a >> 3) + w[i - 7] + (ROTATE(b, 17) ^ ROTATE(b, 19) ^ b >> 10);
    }
    for (ULONG i = 0; i < 8; i++) s[i] = state[i];
    for (ULONG i = 0; i < 64; i++) {
        ULONG one = s[7] + (ROTATE(s[4], 6) ^ ROTATE(s[4], 11) ^ ROTATE(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i];
        ULONG two = (ROTATE(s[0], 2) ^ ROTATE(s[0], 13) ^ ROTATE(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        s[7] = s[6], s[6] = s[5], s[5] = s[4], s[4] = s[3] + one, s[3] = s[2], s[2] = s[1], s[1] = s[0], s[0] = one + two;
    }
    for (ULONG i = 0; i < 8; i++) state[i] += s[i];
}

void RtlSha256Begin(SHA256 *hash) {
    static const ULONG start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(hash->State, start, sizeof start);
    hash->Bytes = 0;
}

void RtlSha256Add(SHA256 *hash, const void *data, SIZE_T size) {
    const UCHAR *p = data;
    while (size) {
        SIZE_T at = hash->Bytes & 63, n = MIN(size, 64 - at);
        if (!at && n == 64) RtlpSha256Block(hash->State, p);
        else {
            memcpy(hash->Block + at, p, n);
            if (at + n == 64) RtlpSha256Block(hash->State, hash->Block);
        }
        hash->Bytes += n, p += n, size -= n;
    }
}

void RtlSha256End(SHA256 *hash, UCHAR digest[32]) {
    static const UCHAR padding[64] = {0x80};
    ULONG64 bits = __builtin_bswap64(hash->Bytes * 8);
    RtlSha256Add(hash, padding, 1 + ((119 - (hash->Bytes & 63)) & 63));
    RtlSha256Add(hash, &bits, 8);
    for (ULONG i = 0; i < 8; i++) ((ULONG *)digest)[i] = __builtin_bswap32(hash->State[i]);
}

void RtlSha256Hex(const void *data, SIZE_T size, CHAR hex[65]) {
    SHA256 hash;
    UCHAR digest[32];
    RtlSha256Begin(&hash);
    RtlSha256Add(&hash, data, size);
    RtlSha256End(&hash, digest);
    for (ULONG i = 0; i < 64; i++) hex[i] = "0123456789abcdef"[digest[i / 2] >> (i & 1 ? 0 : 4) & 15];
    hex[64] = 0;
}
