/* The system services, in the order of their numbers: SERVICE(name, number of arguments). ntdll.dll's stubs and the kernel's
 * table (KiServiceTable) are both made from this list. Arguments are those of NT; what minint ignores is said here.
 * NtSetSystemInformation(SystemStoreInformation, NULL, 0) asks for memory compression, as Windows 10's SysMain service does with
 * more words: STATUS_NOT_FOUND without a paging file.
 *
 * Private information classes, for minint's own programs:
 *   NtQuerySystemInformation(SystemMinintOptions, buffer, size, &needed)   the boot options, a terminated char string
 *   NtSetSystemInformation(SystemMinintTrim, SYSTEM_MININT_TRIM *, size)   MmTrimProcess on the caller's own address space
 *   NtSetSystemInformation(SystemMinintNote, char *, size)                 a line for the serial log's {"event":"note"}
 *   NtSetSystemInformation(SystemMinintSend, frames, size)                 Ethernet frames for ndis.sys to send: each a
 *                                                                          MININT_FRAME and its bytes */
#ifndef SERVICES_H
#define SERVICES_H

#define SystemStoreInformation 109
#define SystemMinintOptions 0x4d490000
#define SystemMinintTrim 0x4d490001
#define SystemMinintNote 0x4d490002
#define SystemMinintSend 0x4d490003

#ifndef __ASSEMBLER__
typedef struct _SYSTEM_MININT_TRIM {
    void *Base;
    SIZE_T Size;
    ULONG Policy; /* MM_TRIM */
} SYSTEM_MININT_TRIM;

typedef struct _MININT_FRAME {
    USHORT Length; /* of the frame behind this */
    UCHAR Pieces;  /* MDLs to put it in */
    UCHAR NewList; /* begins a NET_BUFFER_LIST; without, it joins that of the frame before */
} MININT_FRAME;

/* What the kernel tells ntdll.dll of a WOW64 process (its LdrSystemDllInitBlock); members and indexes as in NT's. */
#define SharedNtdll32LdrInitializeThunk 0
#define SharedNtdll32BaseAddress 8
typedef struct _PS_SYSTEM_DLL_INIT_BLOCK {
    ULONG Size;
    ULONG64 SystemDllWowRelocation, SystemDllNativeRelocation;
    ULONG64 Wow64SharedInformation[16];
} PS_SYSTEM_DLL_INIT_BLOCK;

typedef struct _OBJECT_ATTRIBUTES_ARGUMENT { /* OBJECT_ATTRIBUTES */
    ULONG Length;
    HANDLE RootDirectory;
    UNICODE_STRING *ObjectName;
    ULONG Attributes;
    void *SecurityDescriptor, *SecurityQualityOfService;
} OBJECT_ATTRIBUTES_ARGUMENT;
#endif

#define SYSTEM_SERVICES(SERVICE) \
    SERVICE(NtClose, 1) \
    SERVICE(NtCreateFile, 11) \
    SERVICE(NtReadFile, 9) \
    SERVICE(NtWriteFile, 9) \
    SERVICE(NtFlushBuffersFile, 2) \
    SERVICE(NtQueryInformationFile, 5) \
    SERVICE(NtAllocateVirtualMemory, 6) \
    SERVICE(NtFreeVirtualMemory, 4) \
    SERVICE(NtProtectVirtualMemory, 5) \
    SERVICE(NtUnlockVirtualMemory, 4) /* on pages that are not locked it trims them, as NT does */ \
    SERVICE(NtCreateSection, 7) \
    SERVICE(NtMapViewOfSection, 10) \
    SERVICE(NtUnmapViewOfSection, 2) \
    SERVICE(NtCreateThreadEx, 11) /* handle, access, attributes, process, start, argument, flags, ...; the rest ignored */ \
    SERVICE(NtTerminateThread, 2) \
    SERVICE(NtCreateUserProcess, 11) /* image and command line from the 9th, RTL_USER_PROCESS_PARAMETERS * */ \
    SERVICE(NtTerminateProcess, 2) \
    SERVICE(NtCreatePagingFile, 4) \
    SERVICE(NtDelayExecution, 2) \
    SERVICE(NtYieldExecution, 0) \
    SERVICE(NtWaitForSingleObject, 3) \
    SERVICE(NtCreateEvent, 5) \
    SERVICE(NtSetEvent, 2) \
    SERVICE(NtQuerySystemInformation, 4) \
    SERVICE(NtSetSystemInformation, 3) \
    SERVICE(NtQueryInformationProcess, 5) /* ProcessBasicInformation */ \
    SERVICE(NtQueryPerformanceCounter, 2) \
    SERVICE(NtDisplayString, 1) \
    SERVICE(NtLoadDriver, 1) /* the last part of the registry path names \SystemRoot\System32\drivers\NAME.sys */ \
    SERVICE(NtUnloadDriver, 1)

#endif
