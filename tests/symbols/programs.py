"""PDBs made by clang and lld-link from small C and C++ sources, on x64 and x86."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

TOOLS = ("clang", "lld-link", "llvm-pdbutil")
TARGETS = ("x86_64", "i686")

KERNEL_C = """
typedef unsigned long long u64; typedef unsigned short WCHAR;
struct list { struct list *next, *previous; };
typedef union { struct { u64 Valid:1; u64 Write:1; u64 :3; u64 Frame:36; u64 Rest:23; }; u64 All; } PTE;
enum state { Ready, Running = 7, Waiting = -1 };
typedef enum { A = 1, B } unnamed_enum;
struct forward;
struct outer {
    struct list links; PTE pte; union { u64 whole; struct { unsigned low, high; } parts; } u;
    struct { int x; struct { char y; } inner; } named; enum state state; unnamed_enum e; enum state bits:4;
    WCHAR name[16]; char grid[3][5]; struct forward *opaque; int (*callback)(struct outer *, ...); void *volatile where;
    _Bool flag; double d; float f; struct list array[2]; long l; unsigned char b:3; const struct list *chain[2][3];
    unsigned char tail[];
};
struct outer Outer; static int Hidden = 3; int volatile Sum; const char Text[] = "text";
static __attribute__((noinline)) int local(int v) { return v * Hidden + Sum; }
int NtWriteFile(struct outer *o) { Hidden++; return local((int)o->u.whole) + (int)o->pte.Frame; }
int __stdcall NtClose(struct outer *o, int i) { return o->named.inner.y + i; }
int __fastcall KeFast(int i, int j) { return i + j; }
int _fltused;
int DriverEntry(void) {
    unnamed_enum e = B;
    return NtWriteFile(&Outer) + NtClose(&Outer, 1) + KeFast(1, e) + Text[Sum];
}
"""

CLASSES_CPP = """
using size = decltype(sizeof 0);
void operator delete(void *) {} void operator delete(void *, size) {}
namespace ns {
struct Left {
    int left; virtual ~Left(); virtual int f(); int g(int); int g(char); static int shared;
    enum Kind { One = 1, Big = 0x7fffffff } kind;
};
struct Virtual { char v; };
struct Friend;
class Derived : public Left, public virtual Virtual {
public:
    Derived(); int f() override; virtual int h(); union { int i; float f_; } u; struct { int x; } s;
    struct Nested { short s; Nested *me; } nested; friend struct Friend;
    long long Left::*member; int (Left::*method)(int); bool b; wchar_t w; char16_t c16; char32_t c32; char8_t *c8;
private:
    int last;
};
template <typename T> struct Box { T value; T *pointer; };
enum class Small : unsigned char { X = 255 };
enum Wide : unsigned long long { W = 0xffffffffffffffffull, V = 0x8000 };
enum Low : long long { L = -0x7fffffffffffffffll, M = -40000, N = -200, O = -1 };
Left::~Left() {}
int Left::f() { return left; } int Left::g(int) { return 1; } int Left::g(char) { return 2; } int Left::shared = 4;
Derived::Derived() {} int Derived::f() { return last; } int Derived::h() { return 3; }
}
ns::Box<ns::Derived::Nested> box; ns::Derived derived; ns::Small small; ns::Wide wide; ns::Low low;
int (ns::Left::*pointer)(char) = &ns::Left::g;
extern "C" int _fltused; int _fltused;
extern "C" int _purecall() { return 0; }
extern "C" int atexit(void (*)()) { return 0; }
extern "C" int DriverEntry() { return derived.f() + box.value.s + (int)small + (int)wide + (int)low; }
"""


def missing() -> list[str]:
    """The tools that are needed and not installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def build(folder: Path, name: str, source: str, target: str) -> Path:
    """Compile and link `source` (C++ when `name` ends in pp) and return its PDB."""
    language, suffix = ("c++", "cpp") if name.endswith("pp") else ("c", "c")
    code = folder / f"{name}.{suffix}"
    code.write_text(source)
    flags = ["-ffreestanding", "-g", "-gcodeview", "-fstandalone-debug", "-fno-stack-protector"]
    flags += ["-std=c++20", "-fno-rtti", "-fno-exceptions", "-fno-threadsafe-statics"] if language == "c++" else ["-O1"]
    triple, made = f"{target}-pc-windows-msvc", folder / f"{name}-{target}.obj"
    pdb = folder / f"{name}-{target}.pdb"
    compile_command = ["clang", f"--target={triple}", "-x", language, *flags, "-c", str(code), "-o", str(made)]
    link_command = ["lld-link", "/driver", "/subsystem:native", "/nodefaultlib", "/debug", f"/pdb:{pdb}"]
    link_command += ["/entry:DriverEntry", f"/out:{made.with_suffix('.exe')}", str(made)]
    for command in (compile_command, link_command):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return pdb
