/* ke's private side. */
#ifndef KI_H
#define KI_H

#define KI_INITIAL_STACK_SIZE 0x6000
#define KI_STACK_SIZE 0x6000
#define KI_TICK_MILLISECONDS 10
#define KI_QUANTUM_TICKS 3

#define KGDT64_R0_CODE 0x10
#define KGDT64_R0_DATA 0x18
#define KGDT64_R3_CMCODE 0x20
#define KGDT64_R3_DATA 0x28
#define KGDT64_R3_CODE 0x30
#define KGDT64_SYS_TSS 0x40
#define KGDT64_R3_CMTEB 0x50

#define VECTOR_DPC 0x2F
#define VECTOR_DEVICE 0x50
#define VECTOR_CLOCK 0xD1
#define VECTOR_SPURIOUS 0xDF
#define VECTOR_IPI 0xE1

#ifndef __ASSEMBLER__
#include "mm/mm.h"

/* What minint keeps for a processor beside its KPCR. */
typedef struct _KI_CPU {
    KPCR *Pcr;
    ULONG ApicId;
    volatile ULONG64 IpiRequest; /* KI_IPI_... bits */
    volatile BOOLEAN Started, Frozen, DpcRequested, QuantumEnd;
    BOOLEAN Dispatching; /* the scheduler runs here */
    KGDTENTRY64 *Gdt;
    KTSS64 *Tss;
    void *TransitionStack; /* with KVA shadow: where interrupts from user mode land */
    UCHAR *Area; /* GDT, TSS, IDT on pages of their own */
} KI_CPU;
extern KI_CPU KiCpu[KI_MAXIMUM_PROCESSORS];
#define KI_IPI_FLUSH 1
#define KI_IPI_CALL 2

void KdInitSerial(void);
int KdReadByte(void);

/* gdt, idt, processors */
void KiInitializeProcessorTables(ULONG number, KPCR *pcr, UCHAR *area);
void KiLoadProcessorTables(ULONG number);
void KiMakeIdt(void);
void KiSetIstStacks(ULONG number);
void KiStartAllProcessors(void);
void KiEnableShadow(ULONG number);
#define KI_AREA_SIZE 0x3000 /* IDT, GDT+TSS, transition stack: a page each */

/* local and I/O APIC */
void HalpInitializeApic(void); /* once, finds ACPI's tables */
void HalpEnableLocalApic(void); /* on each processor */
void HalpStartClock(void);
void HalpEndInterrupt(void);
void HalpSendIpi(ULONG apic_id, ULONG vector);
void HalpSendInit(ULONG apic_id);
void HalpSendStartup(ULONG apic_id, ULONG page);
void HalpStall(ULONG microseconds);
ULONG HalpProcessorApicIds(ULONG ids[KI_MAXIMUM_PROCESSORS]);
void HalpDispatchDevice(ULONG vector);

/* the scheduler */
void KiInitializeThread(KTHREAD *thread, KPROCESS *process, void *stack_base, ULONG stack_size, void *routine, void *context,
                        const KTRAP_FRAME *user_frame);
void KiReadyThread(KTHREAD *thread); /* takes the dispatcher lock */
void KiAdoptIdleThread(ULONG number, KTHREAD *thread, void *stack_base, ULONG stack_size);
NORETURN void KiIdleLoop(void);
void KiClockTick(void);
void KiRetireDpcs(void); /* at DISPATCH_LEVEL, from the DPC interrupt */
NORETURN void KiTerminateCurrent(void);
void KiSetProcess(KPROCESS *process); /* page tables of this processor */
void KiSetProcessorFeatures(void);
void KiInitializeTime(void);
extern volatile LONG KiFreezeLevel;
extern KTHREAD *volatile KiFreezeOwner, *volatile KiPinnedThread;
void KiStayFrozen(void);
extern volatile ULONG64 KiTimerTicks;
extern ULONG64 KiTicks;
void KiSignalProcess(KPROCESS *process);
extern UCHAR KiTerminationPending;
extern BOOLEAN KiSchedulerRuns;
#endif
#endif
