"""Names and kinds of the arguments of NT's system calls, as data.

From Microsoft's documentation of the Nt and Zw routines (https://learn.microsoft.com/windows-hardware/drivers/ddi/ and
winternl.h). A kind says how to show an argument, no more:

    handle   a HANDLE                           u8 u32 u64  a number of that many bits (passed in 64)
    access   an ACCESS_MASK or flags, in hex    i32         a signed number (NTSTATUS, LONG)
    ptr      an address, shown as it is         out         an address that the call writes to
    ustr     PUNICODE_STRING                    oa          POBJECT_ATTRIBUTES
    cid      PCLIENT_ID                         pi64        PLARGE_INTEGER that the call reads
    pu32 pu64  a number that the call reads     phandle     PHANDLE that the call reads or writes
    in[N]    address of bytes that the call reads, as many as its argument N says
    out[N]   address of bytes that the call writes
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

_TABLE = """
NtAcceptConnectPort: out PortHandle, ptr PortContext, ptr ConnectionRequest, u8 AcceptConnection, ptr ServerView,
  ptr ClientView
NtAdjustPrivilegesToken: handle TokenHandle, u8 DisableAllPrivileges, ptr NewState, u32 BufferLength,
  out PreviousState, out ReturnLength
NtAllocateVirtualMemory: handle ProcessHandle, pu64 BaseAddress, u64 ZeroBits, pu64 RegionSize, access AllocationType,
  access Protect
NtAllocateVirtualMemoryEx: handle ProcessHandle, pu64 BaseAddress, pu64 RegionSize, access AllocationType,
  access PageProtection, ptr ExtendedParameters, u32 ExtendedParameterCount
NtAlpcConnectPort: out PortHandle, ustr PortName, oa ObjectAttributes, ptr PortAttributes, access Flags,
  ptr RequiredServerSid, ptr ConnectionMessage, ptr BufferLength, ptr OutMessageAttributes, ptr InMessageAttributes,
  pi64 Timeout
NtAlpcCreatePort: out PortHandle, oa ObjectAttributes, ptr PortAttributes
NtAlpcSendWaitReceivePort: handle PortHandle, access Flags, ptr SendMessage, ptr SendMessageAttributes,
  out ReceiveMessage, ptr BufferLength, out ReceiveMessageAttributes, pi64 Timeout
NtAssignProcessToJobObject: handle JobHandle, handle ProcessHandle
NtCancelIoFile: handle FileHandle, out IoStatusBlock
NtCancelIoFileEx: handle FileHandle, ptr IoRequestToCancel, out IoStatusBlock
NtClearEvent: handle EventHandle
NtClose: handle Handle
NtConnectPort: out PortHandle, ustr PortName, ptr SecurityQos, ptr ClientView, ptr ServerView, out MaxMessageLength,
  ptr ConnectionInformation, ptr ConnectionInformationLength
NtContinue: ptr ContextRecord, u8 TestAlert
NtCreateDirectoryObject: out DirectoryHandle, access DesiredAccess, oa ObjectAttributes
NtCreateEvent: out EventHandle, access DesiredAccess, oa ObjectAttributes, u32 EventType, u8 InitialState
NtCreateFile: out FileHandle, access DesiredAccess, oa ObjectAttributes, out IoStatusBlock, pi64 AllocationSize,
  access FileAttributes, access ShareAccess, u32 CreateDisposition, access CreateOptions, in[EaLength] EaBuffer,
  u32 EaLength
NtCreateIoCompletion: out IoCompletionHandle, access DesiredAccess, oa ObjectAttributes, u32 Count
NtCreateJobObject: out JobHandle, access DesiredAccess, oa ObjectAttributes
NtCreateKey: out KeyHandle, access DesiredAccess, oa ObjectAttributes, u32 TitleIndex, ustr Class,
  access CreateOptions, out Disposition
NtCreateMailslotFile: out FileHandle, access DesiredAccess, oa ObjectAttributes, out IoStatusBlock,
  access CreateOptions, u32 MailslotQuota, u32 MaximumMessageSize, pi64 ReadTimeout
NtCreateMutant: out MutantHandle, access DesiredAccess, oa ObjectAttributes, u8 InitialOwner
NtCreateNamedPipeFile: out FileHandle, access DesiredAccess, oa ObjectAttributes, out IoStatusBlock,
  access ShareAccess, u32 CreateDisposition, access CreateOptions, u32 NamedPipeType, u32 ReadMode, u32 CompletionMode,
  u32 MaximumInstances, u32 InboundQuota, u32 OutboundQuota, pi64 DefaultTimeout
NtCreatePagingFile: ustr PageFileName, pi64 MinimumSize, pi64 MaximumSize, u32 Priority
NtCreatePort: out PortHandle, oa ObjectAttributes, u32 MaxConnectionInfoLength, u32 MaxMessageLength, u32 MaxPoolUsage
NtCreateProcess: out ProcessHandle, access DesiredAccess, oa ObjectAttributes, handle ParentProcess,
  u8 InheritObjectTable, handle SectionHandle, handle DebugPort, handle TokenHandle
NtCreateProcessEx: out ProcessHandle, access DesiredAccess, oa ObjectAttributes, handle ParentProcess, access Flags,
  handle SectionHandle, handle DebugPort, handle TokenHandle, u32 Reserved
NtCreateSection: out SectionHandle, access DesiredAccess, oa ObjectAttributes, pi64 MaximumSize,
  access SectionPageProtection, access AllocationAttributes, handle FileHandle
NtCreateSemaphore: out SemaphoreHandle, access DesiredAccess, oa ObjectAttributes, i32 InitialCount, i32 MaximumCount
NtCreateSymbolicLinkObject: out LinkHandle, access DesiredAccess, oa ObjectAttributes, ustr LinkTarget
NtCreateThread: out ThreadHandle, access DesiredAccess, oa ObjectAttributes, handle ProcessHandle, out ClientId,
  ptr ThreadContext, ptr InitialTeb, u8 CreateSuspended
NtCreateThreadEx: out ThreadHandle, access DesiredAccess, oa ObjectAttributes, handle ProcessHandle, ptr StartRoutine,
  ptr Argument, access CreateFlags, u64 ZeroBits, u64 StackSize, u64 MaximumStackSize, ptr AttributeList
NtCreateTimer: out TimerHandle, access DesiredAccess, oa ObjectAttributes, u32 TimerType
NtCreateToken: out TokenHandle, access DesiredAccess, oa ObjectAttributes, u32 TokenType, ptr AuthenticationId,
  pi64 ExpirationTime, ptr User, ptr Groups, ptr Privileges, ptr Owner, ptr PrimaryGroup, ptr DefaultDacl,
  ptr TokenSource
NtCreateUserProcess: out ProcessHandle, out ThreadHandle, access ProcessDesiredAccess, access ThreadDesiredAccess,
  oa ProcessObjectAttributes, oa ThreadObjectAttributes, access ProcessFlags, access ThreadFlags,
  ptr ProcessParameters, ptr CreateInfo, ptr AttributeList
NtDelayExecution: u8 Alertable, pi64 DelayInterval
NtDeleteFile: oa ObjectAttributes
NtDeleteKey: handle KeyHandle
NtDeleteValueKey: handle KeyHandle, ustr ValueName
NtDeviceIoControlFile: handle FileHandle, handle Event, ptr ApcRoutine, ptr ApcContext, out IoStatusBlock,
  access IoControlCode, in[InputBufferLength] InputBuffer, u32 InputBufferLength,
  out[OutputBufferLength] OutputBuffer, u32 OutputBufferLength
NtDuplicateObject: handle SourceProcessHandle, handle SourceHandle, handle TargetProcessHandle, out TargetHandle,
  access DesiredAccess, access HandleAttributes, access Options
NtDuplicateToken: handle ExistingTokenHandle, access DesiredAccess, oa ObjectAttributes, u8 EffectiveOnly,
  u32 TokenType, out NewTokenHandle
NtEnumerateKey: handle KeyHandle, u32 Index, u32 KeyInformationClass, out[Length] KeyInformation, u32 Length,
  out ResultLength
NtEnumerateValueKey: handle KeyHandle, u32 Index, u32 KeyValueInformationClass, out[Length] KeyValueInformation,
  u32 Length, out ResultLength
NtFlushBuffersFile: handle FileHandle, out IoStatusBlock
NtFlushInstructionCache: handle ProcessHandle, ptr BaseAddress, u64 Length
NtFlushKey: handle KeyHandle
NtFlushVirtualMemory: handle ProcessHandle, pu64 BaseAddress, pu64 RegionSize, out IoStatus
NtFreeVirtualMemory: handle ProcessHandle, pu64 BaseAddress, pu64 RegionSize, access FreeType
NtFsControlFile: handle FileHandle, handle Event, ptr ApcRoutine, ptr ApcContext, out IoStatusBlock,
  access FsControlCode, in[InputBufferLength] InputBuffer, u32 InputBufferLength,
  out[OutputBufferLength] OutputBuffer, u32 OutputBufferLength
NtGetContextThread: handle ThreadHandle, out ThreadContext
NtGetNextProcess: handle ProcessHandle, access DesiredAccess, access HandleAttributes, access Flags,
  out NewProcessHandle
NtGetNextThread: handle ProcessHandle, handle ThreadHandle, access DesiredAccess, access HandleAttributes,
  access Flags, out NewThreadHandle
NtImpersonateAnonymousToken: handle ThreadHandle
NtImpersonateThread: handle ServerThreadHandle, handle ClientThreadHandle, ptr SecurityQos
NtIsProcessInJob: handle ProcessHandle, handle JobHandle
NtLoadDriver: ustr DriverServiceName
NtLoadKey: oa TargetKey, oa SourceFile
NtLockFile: handle FileHandle, handle Event, ptr ApcRoutine, ptr ApcContext, out IoStatusBlock, pi64 ByteOffset,
  pi64 Length, u32 Key, u8 FailImmediately, u8 ExclusiveLock
NtLockVirtualMemory: handle ProcessHandle, pu64 BaseAddress, pu64 RegionSize, access MapType
NtMakeTemporaryObject: handle Handle
NtMapViewOfSection: handle SectionHandle, handle ProcessHandle, pu64 BaseAddress, u64 ZeroBits, u64 CommitSize,
  pi64 SectionOffset, pu64 ViewSize, u32 InheritDisposition, access AllocationType, access Win32Protect
NtMapViewOfSectionEx: handle SectionHandle, handle ProcessHandle, pu64 BaseAddress, pi64 SectionOffset, pu64 ViewSize,
  access AllocationType, access PageProtection, ptr ExtendedParameters, u32 ExtendedParameterCount
NtNotifyChangeDirectoryFile: handle FileHandle, handle Event, ptr ApcRoutine, ptr ApcContext, out IoStatusBlock,
  out[Length] Buffer, u32 Length, access CompletionFilter, u8 WatchTree
NtNotifyChangeKey: handle KeyHandle, handle Event, ptr ApcRoutine, ptr ApcContext, out IoStatusBlock,
  access CompletionFilter, u8 WatchTree, out[BufferSize] Buffer, u32 BufferSize, u8 Asynchronous
NtOpenDirectoryObject: out DirectoryHandle, access DesiredAccess, oa ObjectAttributes
NtOpenEvent: out EventHandle, access DesiredAccess, oa ObjectAttributes
NtOpenFile: out FileHandle, access DesiredAccess, oa ObjectAttributes, out IoStatusBlock, access ShareAccess,
  access OpenOptions
NtOpenKey: out KeyHandle, access DesiredAccess, oa ObjectAttributes
NtOpenKeyEx: out KeyHandle, access DesiredAccess, oa ObjectAttributes, access OpenOptions
NtOpenMutant: out MutantHandle, access DesiredAccess, oa ObjectAttributes
NtOpenProcess: out ProcessHandle, access DesiredAccess, oa ObjectAttributes, cid ClientId
NtOpenProcessToken: handle ProcessHandle, access DesiredAccess, out TokenHandle
NtOpenProcessTokenEx: handle ProcessHandle, access DesiredAccess, access HandleAttributes, out TokenHandle
NtOpenSection: out SectionHandle, access DesiredAccess, oa ObjectAttributes
NtOpenSemaphore: out SemaphoreHandle, access DesiredAccess, oa ObjectAttributes
NtOpenSymbolicLinkObject: out LinkHandle, access DesiredAccess, oa ObjectAttributes
NtOpenThread: out ThreadHandle, access DesiredAccess, oa ObjectAttributes, cid ClientId
NtOpenThreadToken: handle ThreadHandle, access DesiredAccess, u8 OpenAsSelf, out TokenHandle
NtOpenThreadTokenEx: handle ThreadHandle, access DesiredAccess, u8 OpenAsSelf, access HandleAttributes,
  out TokenHandle
NtPowerInformation: u32 InformationLevel, in[InputBufferLength] InputBuffer, u32 InputBufferLength,
  out[OutputBufferLength] OutputBuffer, u32 OutputBufferLength
NtProtectVirtualMemory: handle ProcessHandle, pu64 BaseAddress, pu64 RegionSize, access NewProtect, out OldProtect
NtQueryAttributesFile: oa ObjectAttributes, out FileInformation
NtQueryDefaultLocale: u8 UserProfile, out DefaultLocaleId
NtQueryDirectoryFile: handle FileHandle, handle Event, ptr ApcRoutine, ptr ApcContext, out IoStatusBlock,
  out[Length] FileInformation, u32 Length, u32 FileInformationClass, u8 ReturnSingleEntry, ustr FileName,
  u8 RestartScan
NtQueryDirectoryFileEx: handle FileHandle, handle Event, ptr ApcRoutine, ptr ApcContext, out IoStatusBlock,
  out[Length] FileInformation, u32 Length, u32 FileInformationClass, access QueryFlags, ustr FileName
NtQueryDirectoryObject: handle DirectoryHandle, out[Length] Buffer, u32 Length, u8 ReturnSingleEntry, u8 RestartScan,
  ptr Context, out ReturnLength
NtQueryEaFile: handle FileHandle, out IoStatusBlock, out[Length] Buffer, u32 Length, u8 ReturnSingleEntry,
  in[EaListLength] EaList, u32 EaListLength, pu32 EaIndex, u8 RestartScan
NtQueryEvent: handle EventHandle, u32 EventInformationClass, out[EventInformationLength] EventInformation,
  u32 EventInformationLength, out ReturnLength
NtQueryFullAttributesFile: oa ObjectAttributes, out FileInformation
NtQueryInformationByName: oa ObjectAttributes, out IoStatusBlock, out[Length] FileInformation, u32 Length,
  u32 FileInformationClass
NtQueryInformationFile: handle FileHandle, out IoStatusBlock, out[Length] FileInformation, u32 Length,
  u32 FileInformationClass
NtQueryInformationJobObject: handle JobHandle, u32 JobObjectInformationClass,
  out[JobObjectInformationLength] JobObjectInformation, u32 JobObjectInformationLength, out ReturnLength
NtQueryInformationProcess: handle ProcessHandle, u32 ProcessInformationClass,
  out[ProcessInformationLength] ProcessInformation, u32 ProcessInformationLength, out ReturnLength
NtQueryInformationThread: handle ThreadHandle, u32 ThreadInformationClass,
  out[ThreadInformationLength] ThreadInformation, u32 ThreadInformationLength, out ReturnLength
NtQueryInformationToken: handle TokenHandle, u32 TokenInformationClass,
  out[TokenInformationLength] TokenInformation, u32 TokenInformationLength, out ReturnLength
NtQueryKey: handle KeyHandle, u32 KeyInformationClass, out[Length] KeyInformation, u32 Length, out ResultLength
NtQueryLicenseValue: ustr ValueName, out Type, out[DataSize] Data, u32 DataSize, out ResultDataSize
NtQueryMultipleValueKey: handle KeyHandle, ptr ValueEntries, u32 EntryCount, out ValueBuffer, ptr BufferLength,
  out RequiredBufferLength
NtQueryObject: handle Handle, u32 ObjectInformationClass, out[ObjectInformationLength] ObjectInformation,
  u32 ObjectInformationLength, out ReturnLength
NtQueryPerformanceCounter: out PerformanceCounter, out PerformanceFrequency
NtQuerySection: handle SectionHandle, u32 SectionInformationClass, out[SectionInformationLength] SectionInformation,
  u64 SectionInformationLength, out ReturnLength
NtQuerySecurityObject: handle Handle, access SecurityInformation, out[Length] SecurityDescriptor, u32 Length,
  out LengthNeeded
NtQuerySymbolicLinkObject: handle LinkHandle, out LinkTarget, out ReturnedLength
NtQuerySystemInformation: u32 SystemInformationClass, out[SystemInformationLength] SystemInformation,
  u32 SystemInformationLength, out ReturnLength
NtQuerySystemInformationEx: u32 SystemInformationClass, in[InputBufferLength] InputBuffer, u32 InputBufferLength,
  out[SystemInformationLength] SystemInformation, u32 SystemInformationLength, out ReturnLength
NtQuerySystemTime: out SystemTime
NtQueryTimer: handle TimerHandle, u32 TimerInformationClass, out[TimerInformationLength] TimerInformation,
  u32 TimerInformationLength, out ReturnLength
NtQueryValueKey: handle KeyHandle, ustr ValueName, u32 KeyValueInformationClass, out[Length] KeyValueInformation,
  u32 Length, out ResultLength
NtQueryVirtualMemory: handle ProcessHandle, ptr BaseAddress, u32 MemoryInformationClass,
  out[MemoryInformationLength] MemoryInformation, u64 MemoryInformationLength, out ReturnLength
NtQueryVolumeInformationFile: handle FileHandle, out IoStatusBlock, out[Length] FsInformation, u32 Length,
  u32 FsInformationClass
NtQueueApcThread: handle ThreadHandle, ptr ApcRoutine, ptr ApcArgument1, ptr ApcArgument2, ptr ApcArgument3
NtQueueApcThreadEx: handle ThreadHandle, handle ReserveHandle, ptr ApcRoutine, ptr ApcArgument1, ptr ApcArgument2,
  ptr ApcArgument3
NtRaiseException: ptr ExceptionRecord, ptr ContextRecord, u8 FirstChance
NtRaiseHardError: i32 ErrorStatus, u32 NumberOfParameters, u32 UnicodeStringParameterMask, ptr Parameters,
  u32 ValidResponseOptions, out Response
NtReadFile: handle FileHandle, handle Event, ptr ApcRoutine, ptr ApcContext, out IoStatusBlock, out[Length] Buffer,
  u32 Length, pi64 ByteOffset, pu32 Key
NtReadFileScatter: handle FileHandle, handle Event, ptr ApcRoutine, ptr ApcContext, out IoStatusBlock,
  ptr SegmentArray, u32 Length, pi64 ByteOffset, pu32 Key
NtReadVirtualMemory: handle ProcessHandle, ptr BaseAddress, out[BufferSize] Buffer, u64 BufferSize,
  out NumberOfBytesRead
NtReleaseMutant: handle MutantHandle, out PreviousCount
NtReleaseSemaphore: handle SemaphoreHandle, i32 ReleaseCount, out PreviousCount
NtRemoveIoCompletion: handle IoCompletionHandle, out KeyContext, out ApcContext, out IoStatusBlock, pi64 Timeout
NtRemoveIoCompletionEx: handle IoCompletionHandle, out IoCompletionInformation, u32 Count, out NumEntriesRemoved,
  pi64 Timeout, u8 Alertable
NtRenameKey: handle KeyHandle, ustr NewName
NtReplyWaitReceivePort: handle PortHandle, out PortContext, ptr ReplyMessage, out ReceiveMessage
NtRequestWaitReplyPort: handle PortHandle, ptr RequestMessage, out ReplyMessage
NtResetEvent: handle EventHandle, out PreviousState
NtResumeProcess: handle ProcessHandle
NtResumeThread: handle ThreadHandle, out PreviousSuspendCount
NtSecureConnectPort: out PortHandle, ustr PortName, ptr SecurityQos, ptr ClientView, ptr RequiredServerSid,
  ptr ServerView, out MaxMessageLength, ptr ConnectionInformation, ptr ConnectionInformationLength
NtSetContextThread: handle ThreadHandle, ptr ThreadContext
NtSetEaFile: handle FileHandle, out IoStatusBlock, in[Length] Buffer, u32 Length
NtSetEvent: handle EventHandle, out PreviousState
NtSetInformationFile: handle FileHandle, out IoStatusBlock, in[Length] FileInformation, u32 Length,
  u32 FileInformationClass
NtSetInformationJobObject: handle JobHandle, u32 JobObjectInformationClass,
  in[JobObjectInformationLength] JobObjectInformation, u32 JobObjectInformationLength
NtSetInformationKey: handle KeyHandle, u32 KeySetInformationClass,
  in[KeySetInformationLength] KeySetInformation, u32 KeySetInformationLength
NtSetInformationObject: handle Handle, u32 ObjectInformationClass, in[ObjectInformationLength] ObjectInformation,
  u32 ObjectInformationLength
NtSetInformationProcess: handle ProcessHandle, u32 ProcessInformationClass,
  in[ProcessInformationLength] ProcessInformation, u32 ProcessInformationLength
NtSetInformationThread: handle ThreadHandle, u32 ThreadInformationClass,
  in[ThreadInformationLength] ThreadInformation, u32 ThreadInformationLength
NtSetInformationToken: handle TokenHandle, u32 TokenInformationClass,
  in[TokenInformationLength] TokenInformation, u32 TokenInformationLength
NtSetInformationVirtualMemory: handle ProcessHandle, u32 VmInformationClass, u64 NumberOfEntries,
  ptr VirtualAddresses, in[VmInformationLength] VmInformation, u32 VmInformationLength
NtSetIoCompletion: handle IoCompletionHandle, ptr KeyContext, ptr ApcContext, i32 IoStatus, u64 IoStatusInformation
NtSetSecurityObject: handle Handle, access SecurityInformation, ptr SecurityDescriptor
NtSetSystemInformation: u32 SystemInformationClass, in[SystemInformationLength] SystemInformation,
  u32 SystemInformationLength
NtSetSystemTime: pi64 SystemTime, out PreviousTime
NtSetTimer: handle TimerHandle, pi64 DueTime, ptr TimerApcRoutine, ptr TimerContext, u8 ResumeTimer, i32 Period,
  out PreviousState
NtSetValueKey: handle KeyHandle, ustr ValueName, u32 TitleIndex, u32 Type, in[DataSize] Data, u32 DataSize
NtSetVolumeInformationFile: handle FileHandle, out IoStatusBlock, in[Length] FsInformation, u32 Length,
  u32 FsInformationClass
NtShutdownSystem: u32 Action
NtSignalAndWaitForSingleObject: handle SignalHandle, handle WaitHandle, u8 Alertable, pi64 Timeout
NtSuspendProcess: handle ProcessHandle
NtSuspendThread: handle ThreadHandle, out PreviousSuspendCount
NtTerminateJobObject: handle JobHandle, i32 ExitStatus
NtTerminateProcess: handle ProcessHandle, i32 ExitStatus
NtTerminateThread: handle ThreadHandle, i32 ExitStatus
NtTestAlert:
NtTraceControl: u32 FunctionCode, in[InputBufferLength] InputBuffer, u32 InputBufferLength,
  out[OutputBufferLength] OutputBuffer, u32 OutputBufferLength, out ReturnLength
NtTraceEvent: handle TraceHandle, access Flags, in[FieldSize] Fields, u32 FieldSize
NtUnloadDriver: ustr DriverServiceName
NtUnloadKey: oa TargetKey
NtUnlockFile: handle FileHandle, out IoStatusBlock, pi64 ByteOffset, pi64 Length, u32 Key
NtUnlockVirtualMemory: handle ProcessHandle, pu64 BaseAddress, pu64 RegionSize, access MapType
NtUnmapViewOfSection: handle ProcessHandle, ptr BaseAddress
NtUnmapViewOfSectionEx: handle ProcessHandle, ptr BaseAddress, access Flags
NtWaitForAlertByThreadId: ptr Address, pi64 Timeout
NtWaitForMultipleObjects: u32 Count, ptr Handles, u32 WaitType, u8 Alertable, pi64 Timeout
NtWaitForSingleObject: handle Handle, u8 Alertable, pi64 Timeout
NtWriteFile: handle FileHandle, handle Event, ptr ApcRoutine, ptr ApcContext, out IoStatusBlock, in[Length] Buffer,
  u32 Length, pi64 ByteOffset, pu32 Key
NtWriteFileGather: handle FileHandle, handle Event, ptr ApcRoutine, ptr ApcContext, out IoStatusBlock,
  ptr SegmentArray, u32 Length, pi64 ByteOffset, pu32 Key
NtWriteVirtualMemory: handle ProcessHandle, ptr BaseAddress, in[BufferSize] Buffer, u64 BufferSize,
  out NumberOfBytesWritten
NtYieldExecution:
"""


_WIDTHS = {"u8": 8, "u32": 32, "i32": 32, "access": 32}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument: its name, its kind, and for a buffer the name of the argument that says how long it is."""

    name: str
    kind: str
    length: str | None = None

    @property
    def width(self) -> int:
        """How many bits of its 64-bit place it has."""
        return _WIDTHS.get(self.kind, 64)


@dataclass(frozen=True, slots=True)
class Prototype:
    """A function and its arguments, in order."""

    name: str
    parameters: tuple[Parameter, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each argument in bits."""
        return tuple(parameter.width for parameter in self.parameters)


def prototype(function: str) -> Prototype | None:
    """What is known of a function called `NtWriteFile`, `nt!NtWriteFile` or `ntdll!ZwWriteFile`; None for others."""
    name = function.rpartition("!")[2]
    if name.startswith("Zw"):
        name = f"Nt{name[2:]}"
    return table().get(name)


@cache
def table() -> dict[str, Prototype]:
    """Every known prototype by its Nt name."""
    found = {}
    for line in re.sub(r"\n +", " ", _TABLE).strip().splitlines():
        name, _, rest = line.partition(":")
        found[name] = Prototype(name, tuple(_parameter(text) for text in rest.split(",") if text.strip()))
    return found


def _parameter(text: str) -> Parameter:
    kind, _, name = text.strip().partition(" ")
    kind, _, length = kind.partition("[")
    return Parameter(name, kind, length.rstrip("]") or None)
