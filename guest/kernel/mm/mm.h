/* The memory manager: what the rest of minint's kernel may call.
 *
 * Order at boot, on the boot processor:
 *   MmInitSystem(LoaderBlock)  first of all, interrupts off, on the loader's page tables. On return CR3 holds the
 *                              kernel's own tables, pools work, MmPhysicalToVirtual works.
 *   MmInitSystemPhase1()       when threads can be created, objects and I/O work, at PASSIVE_LEVEL: section objects, the
 *                              modified page writer (its own system thread).
 *
 * What MmInitSystem asks of LOADER_BLOCK (nt.h): MemoryRuns[] {BasePage, PageCount} with MemoryRunCount (usable RAM, from the
 * multiboot map); ReservedRuns[] likewise (what must not be reused: the first megabyte's trampoline, the kernel's image,
 * the loader's page tables and stack, the block itself); KernelBase, KernelPhysicalBase, KernelSize (bytes, contiguous
 * in physical memory, raw sections already laid out at their RVAs); Options (char *, the -append string). On entry physical addresses
 * [0, end of RAM) are readable and writable at the same virtual address (the loader's identity map, any page size). The
 * loader's own tables are left alone, so application processors may start on them.
 *
 * Options read: SEED=n (randomisation), NOL1TF (an unaffected CPU: no swizzling), KVASHADOW, TRIM=n (idle trim period in
 * milliseconds, 0 never).
 */
#ifndef MM_H
#define MM_H

#include "../nt.h"

/* ---- Boot */
void MmInitSystem(LOADER_BLOCK *LoaderBlock);
void MmInitSystemPhase1(void);

/* ---- Pool. Zeroed, 16-byte aligned; page aligned from a page on. Nonpaged unless it says paged. NULL when there is none. */
void *ExAllocatePool(SIZE_T Bytes, ULONG Tag);
void *ExAllocatePagedPool(SIZE_T Bytes, ULONG Tag); /* PASSIVE_LEVEL only: it is really paged out and in */
void ExFreePool(void *Block);                       /* either kind */

/* ---- Addresses */
void *MmPhysicalToVirtual(ULONG64 Physical);         /* the physical map: all RAM, 1 GB pages where the CPU has them */
ULONG64 MmGetPhysicalAddress(const void *Address);   /* kernel or current process; 0 when not resident */
BOOLEAN MmIsAddressValid(const void *Address);       /* resident in the current address space */
void *MmMapIoSpace(ULONG64 Physical, SIZE_T Bytes);  /* uncached device memory (APIC, PCI BARs); never unmapped */
ULONG64 MmAllocateContiguous(ULONG Pages);           /* physical address below 4 GB, zeroed, not paged; 0 when there is none */

/* ---- Kernel stacks: whole pages with a guard page below. Returns the highest address (StackBase). */
void *MmCreateKernelStack(ULONG Bytes);
void MmDeleteKernelStack(void *StackBase, ULONG Bytes);

/* ---- Address spaces. MmKernelDirectoryTableBase is System's. With KVA shadow each process has two: Pcb.DirectoryTableBase
 * maps everything, Pcb.UserDirectoryTableBase user space and what MmShadowMap named; without, the user one is 0. */
extern ULONG64 MmKernelDirectoryTableBase;
void MmInitializeSystemProcess(EPROCESS *Process);           /* System: no user space; DirectoryTableBase := the kernel's */
NTSTATUS MmCreateProcessAddressSpace(EPROCESS *Process);     /* user space empty but for KUSER_SHARED_DATA at 0x7FFE0000 */
void MmCleanProcessAddressSpace(EPROCESS *Process);          /* all VADs and pages go; at exit, PASSIVE_LEVEL */
void MmDeleteProcessAddressSpace(EPROCESS *Process);         /* the page directories too; no CPU may be on them any more */
void MmShadowMap(const void *Address, SIZE_T Bytes);         /* kernel bytes that user page tables need: entry code, IDT, GDT, TSS... */

/* ---- Faults. Enter with CR2 in Address, interrupts enabled again (IRQL <= APC). STATUS_SUCCESS: resume. Otherwise the
 * status is for the exception (STATUS_ACCESS_VIOLATION, STATUS_IN_PAGE_ERROR, STATUS_GUARD_PAGE_VIOLATION). */
NTSTATUS MmAccessFault(ULONG64 ErrorCode, void *Address, BOOLEAN UserMode, KTRAP_FRAME *TrapFrame);
NTSTATUS MmCopyFromUser(void *To, const void *UserFrom, SIZE_T Bytes); /* never faults; the current process */
NTSTATUS MmCopyToUser(void *UserTo, const void *From, SIZE_T Bytes);
/* Copies into or out of any process's user space (loader's parameters, PEB...), no attaching needed. */
NTSTATUS MmCopyProcess(EPROCESS *Process, void *UserAddress, void *Buffer, SIZE_T Bytes, BOOLEAN ToProcess);

/* ---- Virtual memory. Process is a referenced body, never a handle; the platform's system services translate handles and
 * probe the user's pointers, these take kernel copies. */
NTSTATUS MmAllocateVirtualMemory(EPROCESS *Process, void **Base, SIZE_T *Size, ULONG Type, ULONG Protect);
NTSTATUS MmFreeVirtualMemory(EPROCESS *Process, void **Base, SIZE_T *Size, ULONG Type);
NTSTATUS MmProtectVirtualMemory(EPROCESS *Process, void **Base, SIZE_T *Size, ULONG Protect, ULONG *OldProtect);

/* ---- Sections. The object is allocated by MmSectionAllocate, which phase 1 points at the object manager's allocation;
 * MmSectionDelete is the type's delete procedure. */
#ifdef HAVE__SECTION
typedef SECTION MM_SECTION;
#else
typedef SECTION_OBJECT MM_SECTION;
#endif
NTSTATUS MmCreateSection(MM_SECTION **Section, FILE_OBJECT *File, ULONG64 Size, ULONG Protect, ULONG Attributes);
NTSTATUS MmMapViewOfSection(MM_SECTION *Section, EPROCESS *Process, void **Base, ULONG64 Offset, SIZE_T *Size, ULONG Protect);
NTSTATUS MmUnmapViewOfSection(EPROCESS *Process, void *Base);
void MmSectionDelete(void *Section);
CONTROL_AREA *MmSectionControlArea(MM_SECTION *Section);
FILE_OBJECT *MmSectionImageFile(MM_SECTION *Section); /* NULL for a section of data */
/* What the process creator needs of an image section. */
typedef struct _MM_IMAGE {
    void *Base;       /* where every view of it goes (chosen once, randomised) */
    void *Entry;
    SIZE_T Size;
    SIZE_T StackReserve, StackCommit;
    USHORT Machine; /* IMAGE_FILE_MACHINE_ */
} MM_IMAGE;
NTSTATUS MmQueryImage(MM_SECTION *Section, MM_IMAGE *Image);

/* ---- Paging files */
NTSTATUS MmCreatePagingFile(const UNICODE_STRING *Name, ULONG64 MinimumSize, ULONG64 MaximumSize); /* \??\C:\pagefile.sys */
ULONG MmNumberOfPagingFilesInUse(void);
void SmKmStoreWorker(void *Context); /* the thread of the compressed store's process: makes the store in its process's memory */
NTSTATUS SmWaitForStore(void);
NTSTATUS MmStoreCheckPagefiles(void); /* STATUS_NOT_FOUND: no paging file, so no store of compressed pages either */

/* ---- Trimming. MmWorkingSetManager is called by the balance-set thread about every second and when MmMemoryIsShort. */
void MmWorkingSetManager(void);
BOOLEAN MmMemoryIsShort(void);
typedef enum _MM_TRIM {
    MmTrimToTransition = 1,   /* valid -> transition (prototype PTEs for shared pages) */
    MmTrimWrite = 2,          /* ... and modified pages written, so on standby */
    MmTrimToBacking = 4,      /* ... and standby frames taken away: paging-file, subsection, demand-zero PTEs */
    MmTrimTables = 8,         /* ... and page tables without valid entries go to transition */
    MmTrimTablesToBacking = 16, /* ... and to the paging file */
    MmTrimProtosToBacking = 32, /* shared pages: the prototype PTEs too leave transition, only then */
    MmTrimKeep = 64,          /* the working-set manager leaves this process alone from now on */
    MmTrimCompress = 128,     /* modified pages are written to the compressed store, where there is one with room */
} MM_TRIM;
/* Size 0: the whole user space. Returns the number of pages that changed state. */
ULONG MmTrimProcess(EPROCESS *Process, void *Base, SIZE_T Size, ULONG Policy);

/* ---- Ground truth. MmFreeze waits until no fault, trim or paging I/O is under way and keeps new ones out (call it from a
 * thread at PASSIVE_LEVEL *before* stopping the other processors); MmThaw undoes it. Between them MmEmitTruth prints one
 * JSON line a page through Emit: of Process, of the kernel's ranges when Process is System, of everything when NULL. */
void MmFreeze(void);
void MmThaw(void);
ULONG MmEmitTruth(EPROCESS *Process);

/* ---- Flushing the TLB of other processors: the platform's inter-processor interrupt calls this at its vector, at an IRQL
 * above DISPATCH_LEVEL (so that holders of spin locks at DISPATCH_LEVEL, interrupts enabled, still answer). */
void MmFlushInterrupt(void);

/* ---- What the memory manager calls of the others, beyond nt.h's types (declared in ke.h, ps.h, ob.h, io.h):
 *   KIRQL KeRaiseIrql(KIRQL) / void KeLowerIrql(KIRQL)   DISPATCH_LEVEL must stop preemption, not interrupts
 *   ULONG KeGetCurrentProcessorNumber(void), ULONG KeNumberProcessors
 *   void KiRequestFlush(ULONG64 Processors)               sends the interrupt whose handler calls MmFlushInterrupt
 *   void KeYieldThread(void)                              lets others run; callable before the scheduler runs (returns)
 *   void KeSleep(ULONG Milliseconds)
 *   EPROCESS *PsGetCurrentProcess(void)
 *   NTSTATUS PsCreateSystemThread(void (*Routine)(void *), void *Context)
 *   void *ObCreateObject(OBJECT_TYPE *Type, SIZE_T Bytes), ObReferenceObject, ObDereferenceObject, MmSectionObjectType
 *   void KdPrint(const char *Format, ...)                 %s %x %u %llx %llu %p %wZ (a UNICODE_STRING *)
 *   void KeBugCheckEx(ULONG Code, ULONG64, ULONG64, ULONG64, ULONG64)
 *   IoReadFile, IoWriteFile, IoOpenFile, IoQueryFileSize, IoSetFileSize
 */

#endif
