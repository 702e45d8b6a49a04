/* Page-table entries: making each form, swizzling, walking. Layouts from the kernel's types alone. */
#include "mi.h"

/* By MM_ protection: bit 0 writable, bit 1 copy on write, bit 2 executable. */
static const UCHAR MiProtectBits[8] = {0, 0, 4, 4, 1, 2, 5, 6};

/* L1TF: an invalid PTE must not look like cacheable RAM, so a bit above it is set; SwizzleBit tells that it was set already. */
NOINLINE MMPTE MiSwizzleInvalidPte(MMPTE Pte) {
    ULONG64 Mask = MiInvalidPteMaskValue;
    if (!Mask || !Pte.u.Long) return Pte;
    if (Pte.u.Long & Mask)
        Pte.u.Soft.SwizzleBit = 1;
    else
        Pte.u.Long |= Mask;
    return Pte;
}

MMPTE MiUnswizzle(MMPTE Pte) {
    if (!Pte.u.Soft.SwizzleBit) Pte.u.Long &= ~MiInvalidPteMaskValue;
    return Pte;
}

MMPTE MiMakeValidPte(PFN_NUMBER Frame, ULONG Protection, BOOLEAN User, BOOLEAN Dirty) {
    MMPTE Pte = MiZeroPte();
    UCHAR Bits = MiProtectBits[Protection & 7];
    Pte.u.Hard.Valid = 1;
    Pte.u.Hard.Accessed = 1;
    Pte.u.Hard.Owner = User;
    Pte.u.Hard.PageFrameNumber = Frame;
    if (Bits & 1) {
        Pte.u.Hard.Write = 1;
        if (Dirty) Pte.u.Hard.Dirty = Pte.u.Hard.Dirty1 = 1; /* Dirty1 is what the processor calls writable */
    }
    if (Bits & 2) Pte.u.Hard.CopyOnWrite = 1;
    if (!(Bits & 4)) Pte.u.Hard.NoExecute = 1;
    if ((Protection & 0x18) == MM_NOCACHE) Pte.u.Hard.CacheDisable = 1;
    return Pte;
}

ULONG MiValidProtection(MMPTE Pte) {
    ULONG Code = Pte.u.Hard.Write ? MM_READWRITE : Pte.u.Hard.CopyOnWrite ? MM_WRITECOPY : MM_READONLY;
    if (!Pte.u.Hard.NoExecute) Code += 2; /* READONLY -> EXECUTE_READ, READWRITE -> EXECUTE_READWRITE, WRITECOPY -> EXECUTE_WRITECOPY */
    return Code;
}

MMPTE MiMakeDemandZero(ULONG Protection, BOOLEAN Swizzle) {
    MMPTE Pte = MiZeroPte();
    Pte.u.Soft.Protection = Protection;
    return Swizzle ? MiSwizzleInvalidPte(Pte) : Pte;
}

MMPTE MiMakeTransition(PFN_NUMBER Frame, ULONG Protection) {
    MMPTE Pte = MiZeroPte();
    Pte.u.Trans.Protection = Protection;
    Pte.u.Trans.Transition = 1;
    Pte.u.Trans.PageFrameNumber = Frame;
    return MiSwizzleInvalidPte(Pte);
}

MMPTE MiMakeProto(MMPTE *Proto, BOOLEAN ReadOnly) {
    MMPTE Pte = MiZeroPte();
    Pte.u.Proto.Prototype = 1;
    Pte.u.Proto.ReadOnly = ReadOnly;
    Pte.u.Proto.ProtoAddress = (LONG64)(ULONG64)Proto;
    return MiSwizzleInvalidPte(Pte);
}

MMPTE MiMakeProtoLookup(ULONG Protection) {
    MMPTE Pte = MiZeroPte();
    Pte.u.Proto.Prototype = 1;
    Pte.u.Proto.Protection = Protection;
    Pte.u.Long |= MI_PROTO_LOOKUP << 16;
    return MiSwizzleInvalidPte(Pte);
}

MMPTE MiMakeSubsection(SUBSECTION *Subsection, ULONG Protection) {
    MMPTE Pte = MiZeroPte();
    Pte.u.Subsect.Prototype = 1;
    Pte.u.Subsect.Protection = Protection;
    Pte.u.Subsect.SubsectionAddress = (LONG64)(ULONG64)Subsection;
    return MiSwizzleInvalidPte(Pte);
}

MMPTE MiMakePagefile(MMPTE Original, ULONG Number, ULONG64 Slot) {
    MMPTE Pte = MiZeroPte();
    Pte.u.Soft.Protection = Original.u.Soft.Protection;
    Pte.u.Soft.PageFileLow = Number;
    Pte.u.Soft.PageFileHigh = Slot;
#ifdef HAVE__MMPTE_SOFTWARE__PageFileAllocated
    Pte.u.Soft.PageFileAllocated = 1;
#endif
    return MiSwizzleInvalidPte(Pte);
}

BOOLEAN MiIsPagefile(MMPTE p) {
    return !p.u.Hard.Valid && !p.u.Soft.Prototype && !p.u.Soft.Transition && p.u.Soft.PageFileHigh != 0;
}

/* Kernel address of a prototype PTE, or MI_PROTO_LOOKUP. Sign extension comes with the bit-field's type; older layouts
 * have it unsigned, so extend here. */
ULONG64 MiProtoAddress(MMPTE Unswizzled) {
    ULONG64 Address = Unswizzled.u.Long >> 16;
    if (Address == (MI_PROTO_LOOKUP & 0xFFFFFFFFFFFFull)) return MI_PROTO_LOOKUP;
    return (ULONG64)((LONG64)Unswizzled.u.Long >> 16);
}

ULONG MiMakeProtectionMask(ULONG Protect) {
    ULONG Mask;
    switch (Protect & 0xFF) {
    case PAGE_NOACCESS: return MM_NOACCESS;
    case PAGE_READONLY: Mask = MM_READONLY; break;
    case PAGE_READWRITE: Mask = MM_READWRITE; break;
    case PAGE_WRITECOPY: Mask = MM_WRITECOPY; break;
    case PAGE_EXECUTE: Mask = MM_EXECUTE; break;
    case PAGE_EXECUTE_READ: Mask = MM_EXECUTE_READ; break;
    case PAGE_EXECUTE_READWRITE: Mask = MM_EXECUTE_READWRITE; break;
    case PAGE_EXECUTE_WRITECOPY: Mask = MM_EXECUTE_WRITECOPY; break;
    default: return MM_INVALID_PROTECTION;
    }
    if (Protect & PAGE_GUARD) Mask |= MM_GUARD_PAGE;
    if (Protect & PAGE_NOCACHE) Mask |= MM_NOCACHE;
    return Mask;
}

/* Win32 protections by the 5 bits of a PTE's Protection, under the name that debuggers look for. */
#define MI_EIGHT(bits)                                                                                                       \
    PAGE_NOACCESS, PAGE_READONLY | (bits), PAGE_EXECUTE | (bits), PAGE_EXECUTE_READ | (bits), PAGE_READWRITE | (bits),         \
        PAGE_WRITECOPY | (bits), PAGE_EXECUTE_READWRITE | (bits), PAGE_EXECUTE_WRITECOPY | (bits)
ULONG MmProtectToValue[32] = {MI_EIGHT(0), MI_EIGHT(PAGE_NOCACHE), MI_EIGHT(PAGE_GUARD), MI_EIGHT(0x400 /* PAGE_WRITECOMBINE */)};

ULONG MiConvertFromMask(ULONG Mask) { return MmProtectToValue[Mask & 0x1F]; }

MMPTE *MiEntry(ULONG64 Dtb, ULONG64 Va, ULONG Level) {
    ULONG64 Table = Dtb & ~0xFFFull;
    for (ULONG At = 4; At > Level; At--) {
        MMPTE Entry = MiRead((MMPTE *)MiP2V(Table) + MiIndex(Va, At));
        if (!Entry.u.Hard.Valid || (At <= 3 && Entry.u.Hard.LargePage)) return NULL;
        Table = MiHardFrame(Entry) << PAGE_SHIFT;
    }
    return (MMPTE *)MiP2V(Table) + MiIndex(Va, Level);
}

ULONG64 MiTranslate(ULONG64 Dtb, ULONG64 Va) {
    ULONG64 Table = Dtb & ~0xFFFull;
    for (ULONG At = 4; At >= 1; At--) {
        ULONG64 Below = (1ull << (3 + 9 * At)) - 1;
        MMPTE Entry = MiRead((MMPTE *)MiP2V(Table) + MiIndex(Va, At));
        if (!Entry.u.Hard.Valid) return MI_NOFRAME;
        Table = MiHardFrame(Entry) << PAGE_SHIFT;
        if (At == 1 || (At <= 3 && Entry.u.Hard.LargePage)) return (Table & ~Below) | (Va & Below);
    }
    return MI_NOFRAME;
}
