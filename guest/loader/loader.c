/* Loads ntoskrnl.exe (the multiboot module) at a randomised base and builds the page tables it starts on.
 *
 * 32-bit code: everything it touches is below 4 GB. The hand-over is LOADER_BLOCK of guest/kernel/nt.h; the same
 * structure is declared here, with 8-byte alignment as the 64-bit kernel has it. */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64 __attribute__((aligned(8)));

typedef struct {
    u64 base_page, page_count;
} Run;

typedef struct {
    u64 cr3, kernel_base, kernel_physical_base, kernel_size, low_stub, rsdp, random, load_ticks;
    u32 memory_run_count, reserved_run_count;
    Run memory_runs[32], reserved_runs[8];
    u64 options;
    char options_text[1024];
} LoaderBlock;

typedef struct {
    u32 flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
} Multiboot;

typedef struct {
    u32 start, end, string, reserved;
} Module;

typedef struct __attribute__((packed)) {
    u32 size;
    unsigned long long base, length;
    u32 type;
} MapEntry;

extern char loader_end[];
u32 cr3_value, block_address;
u64 kernel_entry;
static u32 next; /* bump allocator */
static LoaderBlock block;

static void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static u8 in8(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static __attribute__((noreturn)) void fail(const char *text) {
    static const char before[] = "{\"event\":\"loader-error\",\"text\":\"", after[] = "\"}\n";
    const char *parts[] = {before, text, after};
    for (u32 i = 0; i < 3; i++)
        for (const char *s = parts[i]; *s; s++) {
            while (!(in8(0x3FD) & 0x20)) {}
            out8(0x3F8, (u8)*s);
        }
    for (;;) __asm__ volatile("cli; hlt");
}

void *memset(void *to, int value, u32 size) {
    u8 *p = to;
    while (size--) *p++ = (u8)value;
    return to;
}

void *memcpy(void *to, const void *from, u32 size) {
    u8 *p = to;
    const u8 *q = from;
    while (size--) *p++ = *q++;
    return to;
}

static u64 ticks(void) { u32 a, d; __asm__ volatile("rdtsc" : "=a"(a), "=d"(d)); return a | (unsigned long long)d << 32; }

static void cpuid(u32 leaf, u32 r[4]) {
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0));
}

static unsigned long long mix(unsigned long long x) { /* splitmix64 */
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}

static u8 clock_byte(u8 index) { out8(0x70, index); return in8(0x71); }

static unsigned long long entropy(void) { /* no RDRAND: nested KVM cannot always emulate it */
    unsigned long long seed = ticks();
    for (u8 i = 0; i < 10; i++) seed = mix(seed ^ clock_byte(i));
    for (u32 i = 0; i < 8; i++) seed = mix(seed ^ ticks());
    return seed;
}

/* The number behind NAME= in the options, in decimal or 0x; 0 when it is not there. */
static u64 option(const char *name) {
    for (const char *s = block.options_text; *s; s++) {
        const char *n = name, *p = s;
        if (s != block.options_text && s[-1] != ' ' && s[-1] != '/') continue;
        while (*n && *p == *n) n++, p++;
        if (*n || *p++ != '=') continue;
        u32 base = 10;
        if (p[0] == '0' && (p[1] == 'x' || p[1] == 'X')) base = 16, p += 2;
        u64 value = 0;
        for (;; p++) {
            u32 digit = (u8)*p >= '0' && (u8)*p <= '9' ? (u32)(*p - '0') : ((u32)(*p | 32) - 'a') + 10;
            if (digit >= base) return value;
            value = value * base + digit;
        }
    }
    return 0;
}

static void *page(void) {
    void *p = (void *)next;
    next += 4096;
    return memset(p, 0, 4096);
}

static u64 *table(u64 *parent, u32 index) {
    if (!(parent[index] & 1)) parent[index] = (u32)page() | 3;
    return (u64 *)(u32)(parent[index] & 0xFFFFF000u);
}

static void find_rsdp(void) {
    for (u32 a = 0xE0000; a < 0x100000; a += 16)
        if (((u32 *)a)[0] == 0x20445352 && ((u32 *)a)[1] == 0x20525450) block.rsdp = a; /* "RSD PTR " */
}

static void memory_map(const Multiboot *info) {
    if (!(info->flags & 0x40)) fail("multiboot gave no memory map");
    for (u32 a = info->mmap_addr; a < info->mmap_addr + info->mmap_length;) {
        const MapEntry *entry = (const MapEntry *)a;
        u64 from = (entry->base + 4095) >> 12, to = (entry->base + entry->length) >> 12;
        if (entry->type == 1 && to > from && block.memory_run_count < 32)
            block.memory_runs[block.memory_run_count++] = (Run){from, to - from};
        a += entry->size + 4;
    }
}

static void load_image(const u8 *file, u32 size) {
    const u8 *header = file + *(const u32 *)(file + 0x3C);
    if (file[0] != 'M' || file[1] != 'Z' || header > file + size - 0x200 || *(const u32 *)header != 0x4550 ||
        *(const u16 *)(header + 4) != 0x8664)
        fail("the module is no x64 PE image");
    const u8 *optional = header + 24, *section = optional + *(const u16 *)(header + 20);
    u32 image_size = (*(const u32 *)(optional + 56) + 4095) & ~4095u, sections = *(const u16 *)(header + 6);
    u64 preferred = *(const u64 *)(optional + 24);
    /* NT's kernel lies in the 32 GB from 0xFFFFF80000000000, at 2 MB steps; physically anywhere, at a 4 KB step */
    unsigned long long random = mix(block.random);
    block.kernel_base = 0xFFFFF80000000000ull + (random & 0x7FFE00000ull);
    next += (u32)(random >> 40 & 0x3F) << 12;
    block.kernel_physical_base = next;
    block.kernel_size = image_size;
    u8 *image = (u8 *)next;
    next += image_size;
    memset(image, 0, image_size);
    memcpy(image, file, *(const u32 *)(optional + 60));
    for (u32 i = 0; i < sections; i++, section += 40) {
        u32 rva = *(const u32 *)(section + 12), virtual_size = *(const u32 *)(section + 8);
        u32 raw_size = *(const u32 *)(section + 16), raw = *(const u32 *)(section + 20);
        if (raw_size > virtual_size) raw_size = virtual_size;
        if (rva + raw_size > image_size || raw + raw_size > size) fail("a section of the module lies outside it");
        memcpy(image + rva, file + raw, raw_size);
    }
    u32 fix = *(const u32 *)(optional + 112 + 5 * 8), fix_end = fix + *(const u32 *)(optional + 112 + 5 * 8 + 4);
    unsigned long long delta = block.kernel_base - preferred;
    while (fix + 8 <= fix_end) {
        u32 rva = *(u32 *)(image + fix), length = *(u32 *)(image + fix + 4);
        for (u32 at = 8; at + 2 <= length; at += 2) {
            u16 entry = *(u16 *)(image + fix + at);
            if (entry >> 12 == 10) *(u64 *)(image + rva + (entry & 0xFFF)) += delta;
        }
        fix += length ? length : 0x10000000;
    }
    *(u64 *)(image + (header - file) + 24 + 24) = block.kernel_base; /* as NT's loader leaves it */
    kernel_entry = block.kernel_base + *(const u32 *)(optional + 16);
}

static void map(void) {
    u32 r[4];
    cpuid(0x80000001, r);
    u64 *top = page(), *low = table(top, 0), end = 4ull << 30;
    const Run *last = &block.memory_runs[block.memory_run_count - 1];
    if ((last->base_page + last->page_count) << 12 > end) end = (last->base_page + last->page_count) << 12;
    for (u32 gigabyte = 0; (u64)gigabyte << 30 < end && gigabyte < 512; gigabyte++) {
        if (r[3] & 1u << 26) {
            low[gigabyte] = (u64)gigabyte << 30 | 0x83;
            continue;
        }
        u64 *directory = table(low, gigabyte);
        for (u32 i = 0; i < 512; i++) directory[i] = ((u64)gigabyte << 30) + ((u64)i << 21) + 0x83;
    }
    for (u64 offset = 0; offset < block.kernel_size; offset += 4096) {
        u64 va = block.kernel_base + offset;
        u64 *t = table(table(table(top, va >> 39 & 511), va >> 30 & 511), va >> 21 & 511);
        t[va >> 12 & 511] = (block.kernel_physical_base + offset) | 3;
    }
    block.cr3 = (u32)top;
    cr3_value = (u32)top;
}

void load(u32 magic, const Multiboot *info) {
    if (magic != 0x2BADB002) fail("not started by a multiboot loader");
    block.load_ticks = ticks();
    if (info->flags & 4) { /* the text behind the name of the loader file, which QEMU puts first */
        const char *s = (const char *)info->cmdline;
        while (*s && *s != ' ') s++;
        while (*s == ' ') s++;
        for (u32 i = 0; i + 1 < sizeof block.options_text && s[i]; i++) block.options_text[i] = s[i];
    }
    block.options = (u32)block.options_text;
    if (!(info->flags & 8) || !info->mods_count) fail("no module: start with -initrd ntoskrnl.exe");
    const Module *module = (const Module *)info->mods_addr;
    next = ((u32)loader_end + 4095) & ~4095u;
    if (next < ((module->end + 4095) & ~4095u)) next = (module->end + 4095) & ~4095u;
    memory_map(info);
    find_rsdp();
    u64 seed = option("SEED");
    block.random = seed ? mix(seed) : entropy();
    block.low_stub = 0x10000 + (u32)(mix(block.random ^ 1) & 7) * 0x1000;
    load_image((const u8 *)module->start, module->end - module->start);
    map();
    block.reserved_runs[0] = (Run){0, 256};
    block.reserved_runs[1] = (Run){256, (next >> 12) - 256};
    block.reserved_run_count = 2;
    block_address = (u32)&block;
}
