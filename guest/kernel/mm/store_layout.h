/* The store manager's structures, whose types no public PDB has. By hand from published research, each number with its source:
 *
 * - FLARE: mandiant/win10_volatility, overlays/windows/win10_memcompression.py (1607 to 1903);
 * - MemProcFS: ufrisk/MemProcFS, vmm/mm/mm_win.c, MmWin_MemCompress_InitializeOffsets64 (1607 to 11 24H2);
 * - the kernels' own code as listings show it: ST_STORE<SM_TRAITS>::StDmpSinglePageAdd, StDmpSinglePageRetrieve, StDmCombinePageEntry
 *   (a record's size is its second word's lower 12 bits, 0 for a page that is stored as it is; the first word all ones: the second
 *   is the number of the record that has the page) and StDmPageRecordRemove (a chunk's number at +0x10 of its page). */
#ifndef STORE_LAYOUT_H
#define STORE_LAYOUT_H

/* _SMKM_STORE_MGR, which SmGlobals begins with: FLARE, MemProcFS */
#define SMKM_STORE_MGR__SmkmMetaData 0x0     /* 32 pointers to 32 _SMKM_STORE_METADATA each */
#define SMKM_STORE_MGR__KeyToStoreTree 0x1C0 /* root of a B_TREE */
#define SMKM_STORE_METADATA_SIZE 0x28        /* +0: pointer to the SMKM_STORE */
#define SM_GLOBALS_SIZE 0x400

/* _SMKM_STORE: an _ST_STORE with its _ST_DATA_MGR at +0x50; FLARE, MemProcFS */
#define ST_DATA_MGR__PagesTree (0x50 + 0x0)
#define ST_DATA_MGR__ChunkMetaData (0x50 + 0xC0)
#define ST_DATA_MGR__SmkmStore (0x50 + 0x320)
#define ST_DATA_MGR__RegionSizeMask (0x50 + 0x328)
#define ST_DATA_MGR__RegionIndexMask (0x50 + 0x32C)
#if NT_LAYOUT_BUILD <= 14393
#define ST_DATA_MGR__CompressionAlgorithm (0x50 + 0x3D0)
#define SMKM_STORE__CompressedRegionPtrArray 0x17A8
#define SMKM_STORE__OwnerProcess 0x1918
#else
#define ST_DATA_MGR__CompressionAlgorithm (0x50 + 0x3E0)
#define SMKM_STORE__CompressedRegionPtrArray 0x1848
#if NT_LAYOUT_BUILD <= 18363
#define SMKM_STORE__OwnerProcess 0x19A8
#else
#define SMKM_STORE__OwnerProcess 0x19B8
#endif
#endif
#define SMKM_STORE_SIZE 0x2000 /* two pages */

/* _SMHP_CHUNK_METADATA: FLARE; an array's entry has 16 bytes, the first 8 the chunk's page */
#define SMHP_CHUNK_METADATA__ChunkPtrArray 0x0
#define SMHP_CHUNK_METADATA__BitValue 0x108
#define SMHP_CHUNK_METADATA__PageRecordsPerChunkMask 0x10C
#define SMHP_CHUNK_METADATA__PageRecordSize 0x110
#define SMHP_CHUNK_METADATA__ChunkPageHeaderSize 0x118
#define SMHP_CHUNK_ENTRY 16

#define COMPRESSION_FORMAT_XPRESS 3
#define SM_COMBINED 0xFFFFFFFFu

/* A B_TREE's node, one page: FLARE; levels count from 1 at the leaves (listing of StDmpSinglePageRetrieve) */
typedef struct _B_TREE {
    USHORT Elements;
    UCHAR Level, Leaf;
    ULONG Padding;
    struct _B_TREE *LeftChild;
    union {
        struct { ULONG Key, Value; } Leaves[510];
        struct { ULONG Key, Padding; struct _B_TREE *Child; } Nodes[255];
    };
} B_TREE;
C_ASSERT(sizeof(B_TREE) == PAGE_SIZE);

typedef struct _ST_PAGE_RECORD {
    ULONG Key;
    ULONG CompressedSize; /* lower 12 bits; or the next record's number. The upper 16 are minint's count of sharers */
    ULONG Hash[2];
} ST_PAGE_RECORD;

/* store_tree.c */
BOOLEAN BTreeInsert(B_TREE **Root, ULONG Key, ULONG Value); /* FALSE: no memory */
BOOLEAN BTreeSearch(B_TREE *Root, ULONG Key, ULONG *Value);
void BTreeRemove(B_TREE *Root, ULONG Key);
#endif
