/* Descriptor tables and the KPCR of each processor. */
#include "nt.h"
#include "ki.h"

KI_CPU KiCpu[KI_MAXIMUM_PROCESSORS];
KPRCB *KiProcessorBlock[KI_MAXIMUM_PROCESSORS];
UCHAR KiKvaShadow;

#define GATE(name) void name(void); void name##Shadow(void);
GATE(KiDivideErrorFault) GATE(KiDebugTrapOrFault) GATE(KiNmiInterrupt) GATE(KiBreakpointTrap) GATE(KiOverflowTrap)
GATE(KiBoundFault) GATE(KiInvalidOpcodeFault) GATE(KiNpxNotAvailableFault) GATE(KiDoubleFaultAbort)
GATE(KiInvalidTssFault) GATE(KiSegmentNotPresentFault) GATE(KiStackFault) GATE(KiGeneralProtectionFault)
GATE(KiPageFault) GATE(KiFloatingErrorFault) GATE(KiAlignmentFault) GATE(KiXmmException) GATE(KiDpcInterrupt)
GATE(KiDeviceInterrupt0) GATE(KiDeviceInterrupt1) GATE(KiDeviceInterrupt2) GATE(KiDeviceInterrupt3)
GATE(HalpTimerClockInterrupt) GATE(KiIpiInterrupt) GATE(KiSpuriousInterrupt)
void KiSystemCall64(void);
void KiSystemCall64Shadow(void);

static const struct {
    UCHAR Vector, Dpl, Ist;
    void (*Plain)(void), (*Shadow)(void);
} KiGates[] = {
#define ENTRY(vector, name) {vector, 0, 0, name, name##Shadow}
    ENTRY(0, KiDivideErrorFault), ENTRY(1, KiDebugTrapOrFault), {2, 0, 3, KiNmiInterrupt, KiNmiInterrupt},
    {3, 3, 0, KiBreakpointTrap, KiBreakpointTrapShadow}, {4, 3, 0, KiOverflowTrap, KiOverflowTrapShadow},
    ENTRY(5, KiBoundFault), ENTRY(6, KiInvalidOpcodeFault), ENTRY(7, KiNpxNotAvailableFault),
    {8, 0, 1, KiDoubleFaultAbort, KiDoubleFaultAbort}, ENTRY(10, KiInvalidTssFault), ENTRY(11, KiSegmentNotPresentFault),
    ENTRY(12, KiStackFault), ENTRY(13, KiGeneralProtectionFault), ENTRY(14, KiPageFault), ENTRY(16, KiFloatingErrorFault),
    ENTRY(17, KiAlignmentFault), ENTRY(19, KiXmmException), ENTRY(VECTOR_DPC, KiDpcInterrupt),
    ENTRY(0x50, KiDeviceInterrupt0), ENTRY(0x51, KiDeviceInterrupt1), ENTRY(0x52, KiDeviceInterrupt2),
    ENTRY(0x53, KiDeviceInterrupt3), ENTRY(VECTOR_CLOCK, HalpTimerClockInterrupt), ENTRY(VECTOR_IPI, KiIpiInterrupt),
    ENTRY(VECTOR_SPURIOUS, KiSpuriousInterrupt),
};

/* All processors share one IDT's content; each has its own copy, as NT does. */
static void KiFillIdt(KIDTENTRY64 *idt) {
    for (ULONG i = 0; i < ARRAYSIZE(KiGates); i++) {
        ULONG64 target = (ULONG64)(KiKvaShadow ? KiGates[i].Shadow : KiGates[i].Plain);
        KIDTENTRY64 *gate = &idt[KiGates[i].Vector];
        gate->OffsetLow = (USHORT)target;
        gate->OffsetMiddle = (USHORT)(target >> 16);
        gate->OffsetHigh = (ULONG)(target >> 32);
        gate->Selector = KGDT64_R0_CODE;
        gate->IstIndex = KiGates[i].Ist;
        gate->Type = 14;
        gate->Dpl = KiGates[i].Dpl;
        gate->Present = 1;
    }
}

/* `area`: KI_AREA_SIZE bytes, page-aligned, zeroed: a page for the IDT, one for GDT and TSS, one for the transition stack. */
void KiInitializeProcessorTables(ULONG number, KPCR *pcr, UCHAR *area) {
    KI_CPU *cpu = &KiCpu[number];
    KIDTENTRY64 *idt = (KIDTENTRY64 *)area;
    ULONG64 *gdt = (ULONG64 *)(area + 0x1000);
    KTSS64 *tss = (KTSS64 *)(area + 0x1000 + 0x100);
    cpu->Pcr = pcr;
    cpu->Gdt = (KGDTENTRY64 *)gdt;
    cpu->Tss = tss;
    cpu->TransitionStack = area + KI_AREA_SIZE - 0x10;
    cpu->Area = area;
    gdt[KGDT64_R0_CODE / 8] = 0x00209B0000000000;
    gdt[KGDT64_R0_DATA / 8] = 0x00409300000000FF;
    gdt[KGDT64_R3_CMCODE / 8] = 0x00CFFB000000FFFF;
    gdt[KGDT64_R3_DATA / 8] = 0x00CFF3000000FFFF;
    gdt[KGDT64_R3_CODE / 8] = 0x0020FB0000000000;
    gdt[KGDT64_R3_CMTEB / 8] = 0x0040F3000000FC00;
    ULONG64 base = (ULONG64)tss;
    gdt[KGDT64_SYS_TSS / 8] = 0x67 | (base & 0xFFFFFF) << 16 | 0x89ull << 40 | (base >> 24 & 0xFF) << 56;
    gdt[KGDT64_SYS_TSS / 8 + 1] = base >> 32;
    tss->IoMapBase = sizeof(KTSS64);
    KiFillIdt(idt);
    pcr->GdtBase = (KGDTENTRY64 *)gdt;
    pcr->TssBase = tss;
    pcr->IdtBase = idt;
    pcr->Self = pcr;
    pcr->Used_Self = pcr;
    pcr->CurrentPrcb = &pcr->Prcb;
    pcr->MajorVersion = 1;
    pcr->MinorVersion = 1;
    pcr->StallScaleFactor = 1000;
    pcr->Prcb.Number = number;
    pcr->Prcb.LegacyNumber = (UCHAR)number;
    pcr->Prcb.MajorVersion = 1;
    pcr->Prcb.MinorVersion = 1;
    pcr->Prcb.MxCsr = 0x1F80;
    pcr->Prcb.GroupIndex = (UCHAR)number;
    pcr->Prcb.GroupSetMember = 1ull << number;
    pcr->Prcb.InitialApicId = cpu->ApicId;
    ULONG r[4];
    __cpu(0, 0, r);
    memcpy(pcr->Prcb.VendorString, &r[1], 4);
    memcpy(pcr->Prcb.VendorString + 4, &r[3], 4);
    memcpy(pcr->Prcb.VendorString + 8, &r[2], 4);
    __cpu(1, 0, r);
    pcr->Prcb.CpuID = 1;
    pcr->Prcb.CpuType = (r[0] >> 8) & 15;
    pcr->Prcb.CpuStep = (USHORT)((r[0] & 15) | ((r[0] >> 4) & 0xFF) << 8);
    KiProcessorBlock[number] = &pcr->Prcb;
}

#define MSR_GS_BASE 0xC0000101
#define MSR_KERNEL_GS_BASE 0xC0000102

/* On the processor itself; its tables become current, and what the debugger looks for is noted in ProcessorState. */
void KiLoadProcessorTables(ULONG number) {
    KPCR *pcr = KiCpu[number].Pcr;
    KSPECIAL_REGISTERS *special = &pcr->Prcb.ProcessorState.SpecialRegisters;
    special->Gdtr.Limit = 0x6F;
    special->Gdtr.Base = pcr->GdtBase;
    special->Idtr.Limit = 0xFFF;
    special->Idtr.Base = pcr->IdtBase;
    special->Tr = KGDT64_SYS_TSS;
    ULONG64 *tss_entry = (ULONG64 *)((UCHAR *)pcr->GdtBase + KGDT64_SYS_TSS);
    *tss_entry &= ~(2ull << 40); /* not busy */
    __asm__ volatile("lgdt %0" : : "m"(special->Gdtr.Limit));
    __asm__ volatile("lidt %0" : : "m"(special->Idtr.Limit));
    __asm__ volatile("pushq %0; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1:" : : "i"(KGDT64_R0_CODE) : "rax", "memory");
    __asm__ volatile("movl %0, %%ds; movl %0, %%es; movl %0, %%fs; movl %0, %%gs" : : "r"(KGDT64_R3_DATA | 3));
    __asm__ volatile("movl %0, %%ss" : : "r"(KGDT64_R0_DATA));
    __asm__ volatile("ltr %w0" : : "r"(KGDT64_SYS_TSS));
    __set_msr(MSR_GS_BASE, (ULONG64)pcr);
    __set_msr(MSR_KERNEL_GS_BASE, 0);
    __set_msr(0xC0000080, __msr(0xC0000080) | 0x801); /* SCE, NXE */
    __set_msr(0xC0000081, (ULONG64)(KGDT64_R3_CMCODE | 3) << 48 | (ULONG64)KGDT64_R0_CODE << 32);
    __set_msr(0xC0000082, (ULONG64)(KiKvaShadow ? KiSystemCall64Shadow : KiSystemCall64));
    __set_msr(0xC0000084, 0x4700); /* TF, DF, IF, NT cleared */
    __set_cr4((__cr4() & ~0x20000ull) | 0x6A0ull | 0x8); /* PAE, PGE, OSFXSR, OSXMMEXCPT, DE */
    __set_cr0((__cr0() & ~0xEull) | 0x80050033); /* PG, AM, WP, NE, ET, MP, PE */
    special->Cr0 = __cr0();
    special->Cr3 = __cr3();
    special->Cr4 = __cr4();
    special->MsrGsBase = (ULONG64)pcr;
    special->MsrStar = __msr(0xC0000081);
    special->MsrLStar = __msr(0xC0000082);
    special->MsrSyscallMask = __msr(0xC0000084);
    pcr->Prcb.KernelDirectoryTableBase = __cr3();
}

/* The double fault's and the NMI's stacks, once memory can be had. */
void KiSetIstStacks(ULONG number) {
    KTSS64 *tss = KiCpu[number].Tss;
    tss->Ist[1] = (ULONG64)MmCreateKernelStack(0x2000);
    tss->Ist[3] = (ULONG64)MmCreateKernelStack(0x2000);
    tss->Ist[2] = tss->Ist[1];
}

extern UCHAR KiKvaCode[];

/* Names what user page tables must hold of this processor, and of the kernel's entry code once. */
void KiEnableShadow(ULONG number) {
    KI_CPU *cpu = &KiCpu[number];
    if (!number) {
        const UCHAR *image = (const UCHAR *)KeLoaderBlock->KernelBase;
        const UCHAR *header = image + *(const ULONG *)(image + 0x3C);
        const UCHAR *section = header + 24 + *(const USHORT *)(header + 20);
        for (ULONG i = 0; i < *(const USHORT *)(header + 6); i++, section += 40)
            if (!strncmp((const char *)section, "KVASCODE", 8))
                MmShadowMap(image + *(const ULONG *)(section + 12), *(const ULONG *)(section + 8));
    }
    MmShadowMap(cpu->Area, KI_AREA_SIZE);
    MmShadowMap(cpu->Pcr, 0x1000); /* TssBase, UserRsp, CurrentThread... lie in the first page */
    MmShadowMap(&cpu->Pcr->Prcb.KernelDirectoryTableBase, 0x20);
}
