/* Commit charge: how much memory has been promised, and how much there is to promise. Counted, as debuggers and the task manager
 * of NT show it; minint refuses nothing for it. Charged are private committed pages, sections backed by the paging files,
 * images that belong to the paging files, and what the kernel had taken when phase 1 began. */
#include "mi.h"

#ifdef HAVE__MI_PARTITION
#define MI_COMMITTED ((volatile LONG64 *)&MiSystemPartition.Vp.TotalCommittedPages)
#define MI_LIMIT ((volatile LONG64 *)&MiSystemPartition.Vp.TotalCommitLimit)
#else
ULONG64 MmTotalCommittedPages, MmTotalCommitLimit;
#define MI_COMMITTED ((volatile LONG64 *)&MmTotalCommittedPages)
#define MI_LIMIT ((volatile LONG64 *)&MmTotalCommitLimit)
#endif

void MiChargeCommit(LONG64 Pages) { __atomic_add_fetch(MI_COMMITTED, Pages, __ATOMIC_RELAXED); }
void MiRaiseCommitLimit(LONG64 Pages) { __atomic_add_fetch(MI_LIMIT, Pages, __ATOMIC_RELAXED); }

LONG64 MiVadCommit(VAD *Vad) {
#ifdef HAVE__MMVAD_SHORT__u1_VadFlags1
    return MiVadPrivate(Vad) ? (LONG64)Vad->u1.VadFlags1.CommitCharge : 0;
#else
    return MiVadPrivate(Vad) ? (LONG64)Vad->u.VadFlags.CommitCharge : 0;
#endif
}

/* Space locked, as the VAD is held. */
void MiChargeVad(VAD *Vad, LONG64 Pages) {
    LONG64 Charge = MiVadCommit(Vad) + Pages;
    if (Charge < 0) Pages -= Charge, Charge = 0;
#ifdef HAVE__MMVAD_SHORT__u1_VadFlags1
    Vad->u1.VadFlags1.CommitCharge = (ULONG)Charge;
#else
    Vad->u.VadFlags.CommitCharge = (ULONG64)Charge;
#endif
    MiChargeCommit(Pages);
}
