/* VADs: what a process's address ranges are, in the kernel's own AVL tree (RTL_BALANCED_NODE; MMADDRESS_NODE before 8). */
#include "mi.h"

/* ---- The tree, over either kind of node. Balance is -1, 0 or 1 (right minus left), kept in two bits of the parent link. */
#ifdef HAVE__MMVAD_SHORT__VadNode
typedef RTL_BALANCED_NODE NODE;
#define LEFT(n) (n)->Left
#define RIGHT(n) (n)->Right
static NODE *Up(NODE *n) { return (NODE *)(n->ParentValue & ~3ull); }
static LONG Balance(NODE *n) { return (LONG)(n->ParentValue & 3) == 3 ? -1 : (LONG)(n->ParentValue & 3); }
static void SetUp(NODE *n, NODE *parent) { n->ParentValue = (ULONG64)parent | (n->ParentValue & 3); }
static void SetBalance(NODE *n, LONG balance) { n->ParentValue = (n->ParentValue & ~3ull) | (balance & 3); }
static NODE **Root(EPROCESS *Process) { return (NODE **)&Process->VadRoot.Root; }
static NODE *Top(EPROCESS *Process) { (void)Process; return NULL; } /* what the root's parent is */
#else
typedef MMADDRESS_NODE NODE;
#define LEFT(n) (n)->LeftChild
#define RIGHT(n) (n)->RightChild
static NODE *Up(NODE *n) { return (NODE *)((ULONG64)n->u1.Parent & ~3ull); }
static LONG Balance(NODE *n) { return ((ULONG64)n->u1.Parent & 3) == 3 ? -1 : (LONG)((ULONG64)n->u1.Parent & 3); }
static void SetUp(NODE *n, NODE *parent) { n->u1.Parent = (void *)((ULONG64)parent | ((ULONG64)n->u1.Parent & 3)); }
static void SetBalance(NODE *n, LONG balance) { n->u1.Parent = (void *)(((ULONG64)n->u1.Parent & ~3ull) | (balance & 3)); }
static NODE **Root(EPROCESS *Process) { return (NODE **)&((MM_AVL_TABLE *)&Process->VadRoot)->BalancedRoot.RightChild; }
static NODE *Top(EPROCESS *Process) { return (NODE *)&((MM_AVL_TABLE *)&Process->VadRoot)->BalancedRoot; }
#endif

static NODE *Child(NODE *n, LONG side) { return side > 0 ? RIGHT(n) : LEFT(n); }
static void SetChild(NODE *n, LONG side, NODE *c) {
    if (side > 0)
        RIGHT(n) = c;
    else
        LEFT(n) = c;
    if (c) SetUp(c, n);
}

/* Puts `now` where `was` hung. */
static void Replace(EPROCESS *Process, NODE *parent, NODE *was, NODE *now) {
    if (parent == Top(Process)) {
        *Root(Process) = now;
        if (now) SetUp(now, parent);
    } else {
        SetChild(parent, RIGHT(parent) == was ? 1 : -1, now);
    }
}

static void Rotate(EPROCESS *Process, NODE *p, LONG side) { /* p's child on `side` comes up */
    NODE *c = Child(p, side), *parent = Up(p);
    Replace(Process, parent, p, c);
    SetChild(p, side, Child(c, -side));
    SetChild(c, -side, p);
}

/* p leans by two to `side`. Returns the new top; *Shorter says whether the subtree lost height. */
static NODE *Straighten(EPROCESS *Process, NODE *p, LONG side, BOOLEAN *Shorter) {
    NODE *c = Child(p, side);
    *Shorter = TRUE;
    if (Balance(c) == -side) {
        NODE *g = Child(c, -side);
        LONG lean = Balance(g);
        Rotate(Process, c, -side);
        Rotate(Process, p, side);
        SetBalance(p, lean == side ? -side : 0);
        SetBalance(c, lean == -side ? side : 0);
        SetBalance(g, 0);
        return g;
    }
    Rotate(Process, p, side);
    if (Balance(c) == 0) {
        SetBalance(p, side);
        SetBalance(c, -side);
        *Shorter = FALSE;
    } else {
        SetBalance(p, 0);
        SetBalance(c, 0);
    }
    return c;
}

static void Count(EPROCESS *Process, LONG Change) {
#ifdef HAVE__EPROCESS__VadCount
    Process->VadCount += Change;
#else
#ifdef HAVE__MM_AVL_TABLE
    ((MM_AVL_TABLE *)&Process->VadRoot)->NumberGenericTableElements += Change;
#else
    (void)Process, (void)Change;
#endif
#endif
}

/* ---- Ranges in page numbers */

ULONG64 MiVadStart(VAD *v) {
#ifdef HAVE__MMVAD_SHORT__StartingVpnHigh
    return v->StartingVpn | (ULONG64)v->StartingVpnHigh << 32;
#else
    return v->StartingVpn;
#endif
}

ULONG64 MiVadEnd(VAD *v) {
#ifdef HAVE__MMVAD_SHORT__EndingVpnHigh
    return v->EndingVpn | (ULONG64)v->EndingVpnHigh << 32;
#else
    return v->EndingVpn;
#endif
}

void MiSetVadRange(VAD *v, ULONG64 Start, ULONG64 End) {
    v->StartingVpn = (__typeof__(v->StartingVpn))Start;
    v->EndingVpn = (__typeof__(v->EndingVpn))End;
#ifdef HAVE__MMVAD_SHORT__StartingVpnHigh
    v->StartingVpnHigh = (UCHAR)(Start >> 32);
    v->EndingVpnHigh = (UCHAR)(End >> 32);
#endif
}

BOOLEAN MiVadCommitted(VAD *v) {
#ifdef HAVE__MMVAD_SHORT__u1_VadFlags1
    return (BOOLEAN)v->u1.VadFlags1.MemCommit;
#else
    return (BOOLEAN)v->u.VadFlags.MemCommit;
#endif
}

/* ---- Looking */

VAD *MiLocateVad(EPROCESS *Process, ULONG64 Vpn) {
    NODE *n = *Root(Process);
    while (n) {
        if (Vpn < MiVadStart((VAD *)n))
            n = LEFT(n);
        else if (Vpn > MiVadEnd((VAD *)n))
            n = RIGHT(n);
        else
            return (VAD *)n;
    }
    return NULL;
}

VAD *MiConflictingVad(EPROCESS *Process, ULONG64 Start, ULONG64 End) {
    NODE *n = *Root(Process);
    while (n) {
        if (End < MiVadStart((VAD *)n))
            n = LEFT(n);
        else if (Start > MiVadEnd((VAD *)n))
            n = RIGHT(n);
        else
            return (VAD *)n;
    }
    return NULL;
}

VAD *MiFirstVad(EPROCESS *Process) {
    NODE *n = *Root(Process);
    while (n && LEFT(n)) n = LEFT(n);
    return (VAD *)n;
}

VAD *MiNextVad(VAD *Vad) {
    NODE *n = (NODE *)Vad, *up;
    if (RIGHT(n)) {
        for (n = RIGHT(n); LEFT(n); n = LEFT(n)) {}
        return (VAD *)n;
    }
    for (up = Up(n); up && RIGHT(up) == n; up = Up(n)) n = up;
#ifndef HAVE__MMVAD_SHORT__VadNode
    if (up && Up(up) == up) return NULL;
    if (up && LEFT(up) != n) return NULL; /* the table's own root node */
#endif
    return (VAD *)up;
}

/* ---- Changing */

void MiInsertVad(EPROCESS *Process, VAD *Vad) {
    NODE *n = (NODE *)Vad, *parent = Top(Process), *at = *Root(Process);
    LONG side = 1;
    LEFT(n) = RIGHT(n) = NULL;
    while (at) {
        parent = at;
        side = MiVadStart(Vad) > MiVadStart((VAD *)at) ? 1 : -1;
        at = Child(at, side);
    }
    SetUp(n, parent);
    SetBalance(n, 0);
    if (parent == Top(Process))
        *Root(Process) = n;
    else
        SetChild(parent, side, n);
    while (parent != Top(Process)) {
        LONG lean;
        BOOLEAN shorter;
        side = RIGHT(parent) == n ? 1 : -1;
        lean = Balance(parent) + side;
        if (lean == 2 || lean == -2) {
            Straighten(Process, parent, side, &shorter);
            break;
        }
        SetBalance(parent, lean);
        if (!lean) break;
        n = parent;
        parent = Up(n);
    }
    Count(Process, 1);
    Process->VirtualSize += (MiVadEnd(Vad) - MiVadStart(Vad) + 1) << PAGE_SHIFT;
    if (Process->VirtualSize > Process->PeakVirtualSize) Process->PeakVirtualSize = Process->VirtualSize;
#ifdef HAVE__EPROCESS__VadHint
    Process->VadHint = Vad;
#endif
}

void MiRemoveVad(EPROCESS *Process, VAD *Vad) {
    NODE *n = (NODE *)Vad, *parent, *child;
    LONG side;
    if (LEFT(n) && RIGHT(n)) { /* the next one in order takes its place */
        NODE *s = RIGHT(n), *s_up;
        while (LEFT(s)) s = LEFT(s);
        s_up = Up(s);
        child = RIGHT(s);
        if (s_up == n) {
            parent = s;
            side = 1;
        } else {
            SetChild(s_up, -1, child);
            SetChild(s, 1, RIGHT(n));
            parent = s_up;
            side = -1;
        }
        SetChild(s, -1, LEFT(n));
        Replace(Process, Up(n), n, s);
        SetBalance(s, Balance(n));
    } else {
        child = LEFT(n) ? LEFT(n) : RIGHT(n);
        parent = Up(n);
        side = parent != Top(Process) && RIGHT(parent) == n ? 1 : -1;
        Replace(Process, parent, n, child);
    }
    while (parent != Top(Process)) { /* the subtree on `side` of parent became shorter */
        LONG lean = Balance(parent) - side;
        BOOLEAN shorter = TRUE;
        NODE *top = parent;
        if (lean == 2 || lean == -2) {
            top = Straighten(Process, parent, -side, &shorter);
        } else {
            SetBalance(parent, lean);
            shorter = lean == 0;
        }
        if (!shorter) break;
        parent = Up(top);
        if (parent != Top(Process)) side = RIGHT(parent) == top ? 1 : -1;
    }
    Count(Process, -1);
    Process->VirtualSize -= (MiVadEnd(Vad) - MiVadStart(Vad) + 1) << PAGE_SHIFT;
#ifdef HAVE__EPROCESS__VadHint
    if (Process->VadHint == Vad) Process->VadHint = *Root(Process);
#endif
}

/* First fit from where this process's allocations begin (a page number drawn from its directory's frame at creation, kept in
 * no field: derived). Align in pages. A 32-bit process's lie below what HighestUserAddress says, a process without has it 0. */
ULONG64 MiFindEmpty(EPROCESS *Process, ULONG64 Pages, ULONG64 Align, BOOLEAN Large) {
    ULONG64 Bias = (Process->Pcb.DirectoryTableBase >> 12) * 0x9E3779B97F4A7C15ull >> 40 & 0xFFFFFF;
    ULONG64 Start = (0x10000000ull + (Bias << 7)) & ~(ULONG64)0xFF; /* 1 TB .. 9 TB */
    ULONG64 Limit = (Process->HighestUserAddress ? (ULONG64)Process->HighestUserAddress + 1 : MI_USER_LIMIT) >> PAGE_SHIFT;
    VAD *Vad;
    if (Process->HighestUserAddress) Start = 0x2000 + ((Bias & 0x1FF) << 4); /* 32 MB .. 64 MB */
    else if (Large) Start += 0x4000000;
    Start = (Start + Align - 1) & ~(Align - 1);
    while ((Vad = MiConflictingVad(Process, Start, Start + Pages - 1))) Start = (MiVadEnd(Vad) + Align) & ~(Align - 1);
    return Start + Pages <= Limit ? Start : 0;
}

/* The prototype PTE that a page of a mapped view stands for: by the contiguous array, else along the subsections. */
MMPTE *MiProtoForVad(VAD *Vad, ULONG64 Vpn) {
    MMVAD *Mapped = (MMVAD *)Vad;
    ULONG64 Index = Vpn - MiVadStart(Vad);
    SUBSECTION *At = Mapped->Subsection;
    MMPTE *Proto = Mapped->FirstPrototypePte + Index;
    if (Proto <= Mapped->LastContiguousPte) return Proto;
    if (!At) return NULL;
    Index += Mapped->FirstPrototypePte - At->SubsectionBase;
    while (At && Index >= At->PtesInSubsection) {
        Index -= At->PtesInSubsection;
        At = At->NextSubsection;
    }
    return At ? At->SubsectionBase + Index : NULL;
}
