/* Types that debuggers look for in every kernel's PDB, though minint's kernel makes no such objects: volatility3 opens no kernel
 * without them. A definition that uses a type is what puts it into the PDB. */
#include "nt.h"

union _KDP_FOREIGN_TYPES {
    ERESOURCE Resource;
    TOKEN Token;
    CM_KEY_BODY KeyBody;
    CMHIVE Hive;
    CM_KEY_NODE KeyNode;
    CM_KEY_VALUE KeyValue;
    HMAP_ENTRY Map;
    KMUTANT Mutant;
    OBJECT_SYMBOLIC_LINK SymbolicLink;
    SHARED_CACHE_MAP CacheMap;
    VACB Vacb;
    POOL_TRACKER_BIG_PAGES BigPages;
    IMAGE_DOS_HEADER DosHeader;
    IMAGE_NT_HEADERS64 NtHeaders;
    IMAGE_SECTION_HEADER SectionHeader;
    LDR_DATA_TABLE_ENTRY LoaderEntry;
    MDL Mdl;
} KdpForeignTypes;
