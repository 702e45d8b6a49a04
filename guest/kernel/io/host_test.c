/* The NTFS code on the host, over a plain image file: what the tests and disk.py drive it with.
 *
 *   host_test IMAGE < commands        one command a line; answers are a line each: `ok ...` or `error 0xC0000034`
 *
 *   mkdir PATH, create PATH, size PATH|N, valid PATH, put PATH|OFFSET HEX, get PATH|OFFSET LENGTH
 *   fill PATH|OFFSET LENGTH SEED, import PATH|0 FILE, export PATH|0 FILE, stat PATH, ls PATH, runs PATH
 *   fragment CLUSTERS, free, crash N (the N-th write from now ends the program without a word, status 3)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ntfs.h"

static FILE *image;
static long crash_after = -1;

static NTFS_STATUS Read(void *context, uint64_t offset, void *buffer, uint32_t length) {
    (void)context;
    if (offset % 512 || length % 512) abort();
    if (fseeko(image, (off_t)offset, SEEK_SET) || fread(buffer, 1, length, image) != length) return (NTFS_STATUS)0xC0000185;
    return 0;
}

static NTFS_STATUS Write(void *context, uint64_t offset, const void *buffer, uint32_t length) {
    (void)context;
    if (offset % 512 || length % 512) abort();
    if (crash_after >= 0 && crash_after-- == 0) {
        fflush(image);
        _Exit(3);
    }
    if (fseeko(image, (off_t)offset, SEEK_SET) || fwrite(buffer, 1, length, image) != length) return (NTFS_STATUS)0xC0000185;
    return 0;
}

static void *Allocate(size_t size) { return calloc(1, size ? size : 1); }
static uint64_t Time(void) { return ((uint64_t)time(NULL) + 11644473600ull) * 10000000ull; }

static size_t Wide(const char *text, uint16_t *to, size_t room) {
    size_t n = 0;
    for (const unsigned char *c = (const unsigned char *)text; *c && n < room; n++) {
        uint32_t code = *c++;
        if (code >= 0xE0 && c[0] && c[1]) { code = (code & 15) << 12 | (c[0] & 63u) << 6 | (c[1] & 63u); c += 2; }
        else if (code >= 0xC0 && c[0]) { code = (code & 31) << 6 | (c[0] & 63u); c++; }
        to[n] = (uint16_t)code;
    }
    return n;
}

static void Narrow(const uint16_t *name, uint32_t characters) {
    for (uint32_t i = 0; i < characters; i++) {
        uint32_t c = name[i];
        if (c < 0x80) putchar((int)c);
        else if (c < 0x800) printf("%c%c", 0xC0 | (int)(c >> 6), 0x80 | (int)(c & 63));
        else printf("%c%c%c", 0xE0 | (int)(c >> 12), 0x80 | (int)(c >> 6 & 63), 0x80 | (int)(c & 63));
    }
}

static void Name(void *context, const uint16_t *name, uint32_t characters, uint64_t record, bool directory) {
    (void)context;
    printf("%llu%s ", (unsigned long long)record, directory ? "/" : "");
    Narrow(name, characters);
    putchar('\n');
}

static NTFS_VOLUME *volume;

static NTFS_STATUS Open(const char *path, NTFS_FILE **file) {
    uint16_t wide[4096];
    return NtfsOpen(volume, wide, Wide(path, wide, 4096), file);
}

static uint8_t *Pattern(uint64_t length, uint64_t seed) {
    uint8_t *bytes = Allocate(length);
    for (uint64_t i = 0; i < length; i++) bytes[i] = (uint8_t)((i + seed * 2654435761ull) * 6364136223846793005ull >> 56);
    return bytes;
}

static NTFS_STATUS Pour(NTFS_FILE *file, uint64_t offset, const uint8_t *bytes, uint64_t length) {
    NTFS_STATUS status = 0;
    for (uint64_t at = 0; status >= 0 && at < length;) {
        uint32_t done = 0, step = length - at < 1u << 20 ? (uint32_t)(length - at) : 1u << 20;
        status = NtfsWrite(file, offset + at, bytes + at, step, &done);
        at += done;
    }
    return status;
}

static NTFS_STATUS Command(char *verb, char *path, char *rest) {
    NTFS_FILE *file = NULL;
    uint16_t wide[4096];
    NTFS_STATUS status = 0;
    if (!strcmp(verb, "fragment")) NtfsFragment(volume, (uint32_t)strtoul(path, NULL, 0));
    else if (!strcmp(verb, "crash")) crash_after = strtol(path, NULL, 0);
    else if (!strcmp(verb, "free")) printf("%llu\n", (unsigned long long)NtfsFreeClusters(volume));
    else if (!strcmp(verb, "mkdir") || !strcmp(verb, "create"))
        status = NtfsCreate(volume, wide, Wide(path, wide, 4096), verb[0] == 'm', &file);
    else status = Open(path, &file);
    if (status < 0 || !file) return status;
    uint64_t offset = strtoull(rest, &rest, 0);
    if (!strcmp(verb, "size")) status = NtfsSetSize(file, offset);
    else if (!strcmp(verb, "valid")) status = NtfsSetValid(file);
    else if (!strcmp(verb, "stat"))
        printf("%llu %llu %d\n", (unsigned long long)NtfsFileNumber(file), (unsigned long long)NtfsSize(file), NtfsIsDirectory(file));
    else if (!strcmp(verb, "ls")) status = NtfsEnumerate(file, Name, NULL);
    else if (!strcmp(verb, "runs")) {
        uint32_t count = 0;
        const NTFS_RUN *runs = NtfsRuns(file, &count);
        for (uint32_t i = 0; i < count; i++)
            printf("%llu %lld %llu\n", (unsigned long long)runs[i].Vcn, (long long)runs[i].Lcn, (unsigned long long)runs[i].Count);
    } else if (!strcmp(verb, "fill")) {
        uint64_t length = strtoull(rest, &rest, 0), seed = strtoull(rest, &rest, 0);
        uint8_t *bytes = Pattern(length, seed);
        status = Pour(file, offset, bytes, length);
        free(bytes);
    } else if (!strcmp(verb, "put")) {
        uint8_t bytes[2048];
        uint32_t length = 0, done = 0;
        unsigned value;
        for (rest += strspn(rest, " "); length < sizeof(bytes) && sscanf(rest, "%2x", &value) == 1; rest += 2) bytes[length++] = (uint8_t)value;
        status = NtfsWrite(file, offset, bytes, length, &done);
    } else if (!strcmp(verb, "get")) {
        uint32_t length = (uint32_t)strtoul(rest, &rest, 0), done = 0;
        uint8_t *bytes = Allocate(length);
        status = NtfsRead(file, offset, bytes, length, &done);
        for (uint32_t i = 0; status >= 0 && i < done; i++) printf("%02x", bytes[i]);
        if (status >= 0) putchar('\n');
        free(bytes);
    } else if (!strcmp(verb, "import") || !strcmp(verb, "export")) {
        FILE *other = fopen(rest + strspn(rest, " "), verb[0] == 'i' ? "rb" : "wb");
        uint8_t *bytes = Allocate(1 << 20);
        uint64_t at = 0;
        if (!other) { NtfsClose(file); free(bytes); return NTFS_INVALID; }
        if (verb[0] == 'i') {
            for (size_t n; status >= 0 && (n = fread(bytes, 1, 1 << 20, other)) > 0; at += n) status = Pour(file, at, bytes, n);
            if (status >= 0) status = NtfsSetSize(file, at);
        } else {
            uint32_t done = 0;
            while ((status = NtfsRead(file, at, bytes, 1 << 20, &done)) >= 0 && done) { fwrite(bytes, 1, done, other); at += done; }
            if (status == NTFS_END_OF_FILE) status = 0;
        }
        fclose(other);
        free(bytes);
    }
    NTFS_STATUS closed = NtfsClose(file);
    return status < 0 ? status : closed;
}

int main(int argc, char **argv) {
    static char line[8192];
    NTFS_IO io = {.Read = Read, .Write = Write, .Allocate = Allocate, .Free = free, .Time = Time};
    image = argc == 2 ? fopen(argv[1], "r+b") : NULL;
    if (!image) return fprintf(stderr, "host_test: cannot open the image\n"), 2;
    setvbuf(image, NULL, _IONBF, 0);
    NTFS_STATUS status = NtfsMount(&io, &volume);
    if (status < 0) return printf("error 0x%08X\n", (unsigned)status), 1;
    while (fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = 0;
        char *verb = line, *path = strchr(line, ' '), *rest = NULL;
        if (path) {
            *path++ = 0;
            rest = strchr(path, '|'); /* PATH and the rest are parted by |, so that names may hold blanks */
            if (rest) *rest++ = 0;
        }
        status = Command(verb, path ? path : verb + strlen(verb), rest ? rest : verb + strlen(verb));
        if (status < 0) printf("error 0x%08X\n", (unsigned)status);
        else printf("ok\n");
        fflush(stdout);
    }
    NtfsDismount(volume);
    return fclose(image) ? 2 : 0;
}
