/* ke: processors, traps, interrupts, time, waiting, scheduling. Included by nt.h. */
#ifndef KE_H
#define KE_H

/* IRQL is CR8, as on every x64 NT. Code at DISPATCH_LEVEL keeps interrupts enabled: IPIs (TLB shootdown) still come. */
#define PASSIVE_LEVEL 0
#define APC_LEVEL 1
#define DISPATCH_LEVEL 2
#define CLOCK_LEVEL 13
#define IPI_LEVEL 14
#define HIGH_LEVEL 15
#define KI_MAXIMUM_PROCESSORS 32

FORCEINLINE ULONG64 __cr0(void) { ULONG64 v; __asm__ volatile("movq %%cr0, %0" : "=r"(v)); return v; }
FORCEINLINE ULONG64 __cr2(void) { ULONG64 v; __asm__ volatile("movq %%cr2, %0" : "=r"(v)); return v; }
FORCEINLINE ULONG64 __cr3(void) { ULONG64 v; __asm__ volatile("movq %%cr3, %0" : "=r"(v)); return v; }
FORCEINLINE ULONG64 __cr4(void) { ULONG64 v; __asm__ volatile("movq %%cr4, %0" : "=r"(v)); return v; }
FORCEINLINE ULONG64 __cr8(void) { ULONG64 v; __asm__ volatile("movq %%cr8, %0" : "=r"(v)); return v; }
FORCEINLINE void __set_cr0(ULONG64 v) { __asm__ volatile("movq %0, %%cr0" : : "r"(v) : "memory"); }
FORCEINLINE void __set_cr3(ULONG64 v) { __asm__ volatile("movq %0, %%cr3" : : "r"(v) : "memory"); }
FORCEINLINE void __set_cr4(ULONG64 v) { __asm__ volatile("movq %0, %%cr4" : : "r"(v) : "memory"); }
FORCEINLINE void __set_cr8(ULONG64 v) { __asm__ volatile("movq %0, %%cr8" : : "r"(v) : "memory"); }
FORCEINLINE void __invalidate(const void *va) { __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory"); }
FORCEINLINE ULONG64 __msr(ULONG n) { ULONG a, d; __asm__ volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(n)); return a | (ULONG64)d << 32; }
FORCEINLINE void __set_msr(ULONG n, ULONG64 v) { __asm__ volatile("wrmsr" : : "c"(n), "a"((ULONG)v), "d"((ULONG)(v >> 32)) : "memory"); }
FORCEINLINE void __cpu(ULONG leaf, ULONG sub, ULONG r[4]) { __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub)); }
FORCEINLINE ULONG64 __tsc(void) { ULONG a, d; __asm__ volatile("rdtsc" : "=a"(a), "=d"(d)); return a | (ULONG64)d << 32; }
FORCEINLINE ULONG64 __flags(void) { ULONG64 v; __asm__ volatile("pushfq; popq %0" : "=r"(v)); return v; }
FORCEINLINE void __cli(void) { __asm__ volatile("cli" : : : "memory"); }
FORCEINLINE void __sti(void) { __asm__ volatile("sti" : : : "memory"); }
FORCEINLINE void __hlt(void) { __asm__ volatile("hlt" : : : "memory"); }
FORCEINLINE void __relax(void) { __asm__ volatile("pause" : : : "memory"); }
FORCEINLINE void __barrier(void) { __asm__ volatile("" : : : "memory"); }
FORCEINLINE UCHAR __in8(USHORT p) { UCHAR v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(p)); return v; }
FORCEINLINE USHORT __in16(USHORT p) { USHORT v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(p)); return v; }
FORCEINLINE ULONG __in32(USHORT p) { ULONG v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(p)); return v; }
FORCEINLINE void __out8(USHORT p, UCHAR v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(p)); }
FORCEINLINE void __out16(USHORT p, USHORT v) { __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(p)); }
FORCEINLINE void __out32(USHORT p, ULONG v) { __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(p)); }

FORCEINLINE KPCR *KeGetPcr(void) { KPCR *p; __asm__ volatile("movq %%gs:%c1, %0" : "=r"(p) : "i"(OFF__KPCR__Self)); return p; }
FORCEINLINE KPRCB *KeGetCurrentPrcb(void) { KPRCB *p; __asm__ volatile("movq %%gs:%c1, %0" : "=r"(p) : "i"(OFF__KPCR__CurrentPrcb)); return p; }
FORCEINLINE KTHREAD *KeGetCurrentThread(void) { KTHREAD *t; __asm__ volatile("movq %%gs:%c1, %0" : "=r"(t) : "i"(OFF__KPCR__Prcb + OFF__KPRCB__CurrentThread)); return t; }
FORCEINLINE ULONG KeGetCurrentProcessorNumber(void) { return KeGetCurrentPrcb()->Number; }

FORCEINLINE KIRQL KeGetCurrentIrql(void) { return (KIRQL)__cr8(); }
FORCEINLINE KIRQL KeRaiseIrql(KIRQL to) { KIRQL old = (KIRQL)__cr8(); __set_cr8(to); return old; }
FORCEINLINE void KeLowerIrql(KIRQL to) { __set_cr8(to); }

/* Spin locks: raise to DISPATCH_LEVEL and spin with interrupts enabled. Never held across a wait. Recursion deadlocks. */
FORCEINLINE void KiSpin(KSPIN_LOCK *lock) {
    while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE))
        for (ULONG n = 1; __atomic_load_n(lock, __ATOMIC_RELAXED); n++) if (!(n & 0xFFF)) __relax(); /* under TCG dear */
}
FORCEINLINE void KiUnspin(KSPIN_LOCK *lock) { __atomic_store_n(lock, 0, __ATOMIC_RELEASE); }
FORCEINLINE KIRQL KeAcquireSpinLock(KSPIN_LOCK *lock) { KIRQL old = KeRaiseIrql(DISPATCH_LEVEL); KiSpin(lock); return old; }
FORCEINLINE void KeReleaseSpinLock(KSPIN_LOCK *lock, KIRQL old) { KiUnspin(lock); KeLowerIrql(old); }

/* Push locks: may be held across waits and page faults (at PASSIVE or APC level); a waiter gives up its processor. The
 * owner runs at APC_LEVEL meanwhile only if it raised itself. Exclusive only; recursion deadlocks. Usable before the
 * scheduler runs (then never contended). */
void ExAcquirePushLockExclusive(EX_PUSH_LOCK *lock);
BOOLEAN ExTryAcquirePushLockExclusive(EX_PUSH_LOCK *lock);
void ExReleasePushLockExclusive(EX_PUSH_LOCK *lock);

/* Events and waiting. Times in milliseconds; KE_FOREVER waits without limit. */
#define KE_FOREVER (~0ull)
#define NotificationEvent 0
#define SynchronizationEvent 1
void KeInitializeEvent(KEVENT *event, ULONG type, BOOLEAN signalled);
void KeSetEvent(KEVENT *event);
void KeResetEvent(KEVENT *event);
NTSTATUS KeWaitForSingleObject(void *object, ULONG64 milliseconds); /* any object that starts with a DISPATCHER_HEADER */
void KeSleep(ULONG milliseconds);
void KeYieldThread(void); /* lets others run; returns at once before the scheduler runs */
ULONG64 KeQueryInterruptTime(void); /* 100 ns since boot */
ULONG64 KeQuerySystemTime(void); /* 100 ns since 1601 */

/* Of a set of processors whose TLBs have to be flushed, those that cannot wait: the others are idle and will do it, wholly,
 * before they run anything. Called after the entry has changed. */
ULONG64 KiDeferFlush(ULONG64 processors);
ULONG64 KiProcessorsOn(ULONG64 directory);

/* Sends the interrupt whose handler calls MmFlushInterrupt (mm.h), at IPI_LEVEL, to a set of processors. */
void KiRequestFlush(ULONG64 processors);

/* Stops every other processor, and every other thread, until KeThawExecution; PASSIVE_LEVEL. The caller goes on on the boot
 * processor, to which device interrupts come. No stopped processor holds a spin lock; stopped threads may hold anything else. */
void KeFreezeExecution(void);
void KeThawExecution(void);
void KeIpiGenericCall(void (*routine)(void *), void *context); /* on all processors, IPI_LEVEL, and waits */

/* Copies that survive bad user addresses: STATUS_ACCESS_VIOLATION (or the in-page error). PASSIVE or APC level. */
NTSTATUS RtlCopyFromUser(void *to, const void *user, SIZE_T size);
NTSTATUS RtlCopyToUser(void *user, const void *from, SIZE_T size);

/* Interrupt lines through the I/O APIC, as PCI interrupts report them (level, active low) or ISA (edge). The routine runs
 * at the vector's IRQL (device level 5). */
NTSTATUS KeConnectInterrupt(ULONG gsi, BOOLEAN level_triggered, void (*routine)(void *), void *context);

/* Attach to another process's address space (KAPC_STATE of the current thread). Nest at most once. */
void KeStackAttachProcess(KPROCESS *process);
void KeUnstackDetachProcess(void);

/* Set by ke for the rest of the kernel */
extern ULONG KeNumberProcessors;
extern KPRCB *KiProcessorBlock[KI_MAXIMUM_PROCESSORS];
extern UCHAR KiKvaShadow;
extern UCHAR KiImplementedPhysicalBits;

#endif
