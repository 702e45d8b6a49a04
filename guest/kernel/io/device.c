/* The driver and device objects between a file and the disk, as a Windows system has them:
 *
 *   FILE_OBJECT.DeviceObject -> \Device\HarddiskVolume1 (\Driver\volmgr) -> VPB -> the file system's device (\FileSystem\Ntfs)
 *   \Device\Harddisk0\DR0 (\Driver\Disk) is the disk below.
 *
 * The code of these is part of ntoskrnl.exe, so their DriverStart is the kernel's; drivers of their own are in driver.c. */
#include "iop.h"

#define IO_TYPE_DEVICE 3
#define IO_TYPE_DRIVER 4
#define IO_TYPE_VPB 10
#define IO_TYPE_DEVICE_OBJECT_EXTENSION 13
#define FILE_DEVICE_DISK 7
#define FILE_DEVICE_DISK_FILE_SYSTEM 8
#define FILE_REMOVABLE_MEDIA 1
#define FILE_FLOPPY_DISKETTE 4
#define VPB_MOUNTED 1
#define DO_DEVICE_HAS_NAME 0x40
#define DO_DIRECT_IO 0x10

DEVICE_OBJECT *IopVolumeDevice;
ULONG InitWinPEModeType; /* set in phase 1 from the boot options, or by whoever watches the boot */

DRIVER_OBJECT *IopCreateDriver(PCWSTR folder, PCWSTR name, PCWSTR full_name) {
    OBJECT_DIRECTORY *directory = ObLookup(ObpRootDirectoryObject, folder);
    if (!directory) directory = ObCreateDirectory(folder, ObpRootDirectoryObject);
    DRIVER_OBJECT *driver = ObCreateNamedObject(IoDriverObjectType, sizeof(DRIVER_OBJECT) + sizeof(DRIVER_EXTENSION), name, directory);
    if (!driver) return NULL;
    driver->Type = IO_TYPE_DRIVER;
    driver->Size = sizeof(*driver);
    driver->DriverStart = (void *)KeLoaderBlock->KernelBase;
    driver->DriverSize = (ULONG)KeLoaderBlock->KernelSize;
    driver->DriverExtension = (DRIVER_EXTENSION *)(driver + 1);
    driver->DriverExtension->DriverObject = driver;
    RtlInitUnicodeString(&driver->DriverName, full_name);
    RtlInitUnicodeString(&driver->DriverExtension->ServiceKeyName, name);
    return driver;
}

static DEVICE_OBJECT *CreateDevice(DRIVER_OBJECT *driver, PCWSTR name, OBJECT_DIRECTORY *directory, ULONG type) {
    SIZE_T size = sizeof(DEVICE_OBJECT) + sizeof(DEVOBJ_EXTENSION);
    DEVICE_OBJECT *device = name ? ObCreateNamedObject(IoDeviceObjectType, size, name, directory) : ObCreateObject(IoDeviceObjectType, size);
    if (!device) return NULL;
    device->Type = IO_TYPE_DEVICE;
    device->Size = sizeof(*device);
    device->DriverObject = driver;
    device->NextDevice = driver->DeviceObject;
    driver->DeviceObject = device;
    device->DeviceType = type;
    device->Flags = DO_DIRECT_IO | (name ? DO_DEVICE_HAS_NAME : 0);
    device->SectorSize = 512;
    device->StackSize = 1;
    device->DeviceObjectExtension = (DEVOBJ_EXTENSION *)(device + 1);
    device->DeviceObjectExtension->Type = IO_TYPE_DEVICE_OBJECT_EXTENSION;
    device->DeviceObjectExtension->DeviceObject = device;
    return device;
}

NTSTATUS IopCreateDevices(NTFS_VOLUME *volume) {
    OBJECT_DIRECTORY *devices = ObLookup(ObpRootDirectoryObject, L"Device");
    if (!devices) devices = ObCreateDirectory(L"Device", ObpRootDirectoryObject);
    OBJECT_DIRECTORY *disks = devices ? ObCreateDirectory(L"Harddisk0", devices) : NULL;
    DRIVER_OBJECT *disk = IopCreateDriver(L"Driver", L"Disk", L"\\Driver\\Disk");
    DRIVER_OBJECT *volumes = IopCreateDriver(L"Driver", L"volmgr", L"\\Driver\\volmgr");
    DRIVER_OBJECT *ntfs = IopCreateDriver(L"FileSystem", L"Ntfs", L"\\FileSystem\\Ntfs");
    VPB *vpb = ExAllocatePool(sizeof(*vpb), 'bpV ');
    if (!disks || !disk || !volumes || !ntfs || !vpb) return STATUS_INSUFFICIENT_RESOURCES;
    DEVICE_OBJECT *raw = CreateDevice(disk, L"DR0", disks, FILE_DEVICE_DISK);
    IopVolumeDevice = CreateDevice(volumes, L"HarddiskVolume1", devices, FILE_DEVICE_DISK);
    DEVICE_OBJECT *system = CreateDevice(ntfs, NULL, NULL, FILE_DEVICE_DISK_FILE_SYSTEM);
    if (!raw || !IopVolumeDevice || !system) return STATUS_INSUFFICIENT_RESOURCES;
    vpb->Type = IO_TYPE_VPB;
    vpb->Size = sizeof(*vpb);
    vpb->Flags = VPB_MOUNTED;
    vpb->DeviceObject = system;
    vpb->RealDevice = IopVolumeDevice;
    vpb->SerialNumber = NtfsSerialNumber(volume);
    vpb->ReferenceCount = 1;
    vpb->VolumeLabelLength = 6 * sizeof(WCHAR);
    memcpy(vpb->VolumeLabel, L"minint", 6 * sizeof(WCHAR));
    IopVolumeDevice->Vpb = vpb;
    system->DeviceExtension = volume;
    return STATUS_SUCCESS;
}

BOOLEAN IoIsDeviceEjectable(DEVICE_OBJECT *device) {
    return (device->Characteristics & (FILE_FLOPPY_DISKETTE | FILE_REMOVABLE_MEDIA)) != 0 || (InitWinPEModeType & 0x80000000) != 0;
}
