/* ob: objects, types, the directory, handles. Included by nt.h. */
#ifndef OB_H
#define OB_H

/* Types. MmCreateSection asks ObCreateObject(MmSectionObjectType, ...), IoOpenFile ObCreateObject(IoFileObjectType, ...). */
extern OBJECT_TYPE *PsProcessType, *PsThreadType, *MmSectionObjectType, *IoFileObjectType, *IoDriverObjectType,
    *IoDeviceObjectType, *ExEventObjectType, *ObpDirectoryObjectType, *ObpTypeObjectType;

/* A zeroed body of `size` bytes in nonpaged pool behind a real OBJECT_HEADER (encoded TypeIndex); one reference; NULL when
 * there is no memory. The named form has a name header and is inserted into `directory` when that is not NULL. */
void *ObCreateObject(OBJECT_TYPE *type, SIZE_T size);
void *ObCreateNamedObject(OBJECT_TYPE *type, SIZE_T size, PCWSTR name, OBJECT_DIRECTORY *directory);
void ObReferenceObject(void *object);
void ObDereferenceObject(void *object); /* at zero: the type's delete routine, then the memory */
OBJECT_TYPE *ObGetObjectType(void *object);
extern void (*ObpDeleteRoutine[64])(void *object); /* by type index; set by the type's owner: mm for sections, io for files */

NTSTATUS ObOpenObjectByPointer(void *object, ACCESS_MASK access, EPROCESS *process, HANDLE *handle); /* adds a reference */
NTSTATUS ObReferenceObjectByHandle(HANDLE handle, ACCESS_MASK access, OBJECT_TYPE *type, void **object);
NTSTATUS ObCloseHandle(HANDLE handle);
struct _HANDLE_TABLE *ObCreateHandleTable(EPROCESS *process); /* for EPROCESS.ObjectTable */
void ObKillProcess(EPROCESS *process); /* closes every handle, frees the table */
extern struct _HANDLE_TABLE *ObpKernelHandleTable; /* System's */

extern OBJECT_DIRECTORY *ObpRootDirectoryObject;
OBJECT_DIRECTORY *ObCreateDirectory(PCWSTR name, OBJECT_DIRECTORY *parent);
void *ObLookup(OBJECT_DIRECTORY *directory, PCWSTR name); /* one level; no reference */

void ObInitSystem(void);
#endif
