/* NTFS: mounting: the boot sector, $MFT, $Bitmap, $UpCase. */
#include "ntfs_private.h"

static NTFS_STATUS LoadSystemFile(NTFS_VOLUME *volume, uint64_t number, uint64_t least, uint64_t most, void **content, NTFS_FILE **file) {
    NTFS_STATUS status = NtfsOpenRecord(volume, number, 0, file);
    if (status < 0) return status;
    uint64_t size = (*file)->Data.Size;
    if (size < least || size > most || (*file)->Data.Initialized != size) return NTFS_CORRUPT;
    *content = volume->Io.Allocate(RoundUp(size, SECTOR));
    if (!*content) return NTFS_NO_MEMORY;
    return NtfsTransfer(&(*file)->Data, 0, *content, size, NTFS_READ);
}

static NTFS_STATUS ReadBoot(NTFS_VOLUME *volume, const uint8_t *boot, uint64_t *mft_lcn) {
    uint32_t bytes = Get16(boot + 0xB), shift;
    int8_t sectors = (int8_t)boot[0xD], record = (int8_t)boot[0x40], index = (int8_t)boot[0x44];
    if (memcmp(boot + 3, "NTFS    ", 8) != 0 || Get16(boot + 0x1FE) != 0xAA55) return NTFS_UNRECOGNIZED;
    if (bytes < 512 || bytes > 4096 || (bytes & (bytes - 1))) return NTFS_CORRUPT;
    if (sectors > 0) shift = (uint32_t)sectors;
    else shift = sectors < 0 && sectors > -17 ? 1u << -sectors : 0;
    volume->ClusterSize = shift > 65536 ? 0 : bytes * shift;
    if (!volume->ClusterSize || (volume->ClusterSize & (volume->ClusterSize - 1)) || volume->ClusterSize > 2u << 20) return NTFS_CORRUPT;
    volume->RecordSize = record > 0 ? (uint32_t)record * volume->ClusterSize : record > -31 && record < 0 ? 1u << -record : 0;
    volume->IndexSize = index > 0 ? (uint32_t)index * volume->ClusterSize : index > -31 && index < 0 ? 1u << -index : 0;
    if (volume->RecordSize < 1024 || volume->RecordSize > 4096 || (volume->RecordSize & (volume->RecordSize - 1))) return NTFS_CORRUPT;
    if (volume->IndexSize < 2048 || volume->IndexSize > 65536 || (volume->IndexSize & (volume->IndexSize - 1))) return NTFS_CORRUPT;
    uint64_t total = Get64(boot + 0x28);
    if (total > MAXIMUM_FILE / bytes) return NTFS_CORRUPT;
    volume->Clusters = total * bytes / volume->ClusterSize;
    volume->MirrorLcn = Get64(boot + 0x38);
    volume->Serial = Get32(boot + 0x48);
    *mft_lcn = Get64(boot + 0x30);
    return *mft_lcn < volume->Clusters && volume->MirrorLcn < volume->Clusters && *mft_lcn ? NTFS_OK : NTFS_CORRUPT;
}

static NTFS_STATUS Mount(NTFS_VOLUME *volume) {
    void *content = NULL;
    NTFS_FILE *upcase = NULL;
    uint64_t mft_lcn = 0;
    volume->Staging = volume->Io.Allocate(STAGING);
    volume->Cache = volume->Io.Allocate(CACHED_SECTORS * SECTOR);
    for (uint32_t i = 0; i < CACHED_SECTORS; i++) volume->CachedAt[i] = NTFS_HOLE;
    if (!volume->Staging || !volume->Cache) return NTFS_NO_MEMORY;
    NTFS_STATUS status = volume->Io.Read(volume->Io.Context, 0, volume->Staging, SECTOR);
    if (status >= 0) status = ReadBoot(volume, volume->Staging, &mft_lcn);
    if (status < 0) return status;
    volume->Block = volume->Io.Allocate(volume->IndexSize);
    volume->Pairs = volume->Io.Allocate(volume->RecordSize);
    volume->Spare = volume->Io.Allocate(MAXIMUM_DEPTH * 1024u);
    volume->Work = volume->Io.Allocate(MAXIMUM_DEPTH * (volume->IndexSize + 1024u));
    NTFS_FILE *mft = volume->Mft = volume->Io.Allocate(sizeof(*mft));
    if (mft) mft->Record = volume->Io.Allocate(volume->RecordSize);
    if (!mft || !mft->Record || !volume->Block || !volume->Pairs || !volume->Spare || !volume->Work) return NTFS_NO_MEMORY;
    mft->Volume = volume;
    mft->References = 1;
    volume->Files = mft;
    status = volume->Io.Read(volume->Io.Context, mft_lcn * volume->ClusterSize, mft->Record, volume->RecordSize);
    if (status >= 0) status = NtfsApplyFixups(mft->Record, volume->RecordSize, MAGIC_FILE);
    if (status >= 0 && !NtfsRecordIsSound(mft->Record, volume->RecordSize)) status = NTFS_CORRUPT;
    if (status >= 0) status = NtfsParseRecord(mft);
    if (status >= 0 && (mft->Data.Resident || !mft->Data.RunCount || mft->Data.Runs[0].Lcn != mft_lcn)) status = NTFS_CORRUPT;
    if (status < 0) return status;

    uint64_t bytes = (volume->Clusters + 7) / 8;
    status = LoadSystemFile(volume, 6, bytes, 64u << 20, &content, &volume->BitmapFile);
    volume->Bitmap = content;
    content = NULL;
    if (status >= 0) status = LoadSystemFile(volume, 10, 131072, 131072, &content, &upcase);
    volume->UpCase = content;
    if (upcase) NtfsClose(upcase);
    if (status < 0) return status;
    for (uint64_t at = 0; at < volume->Clusters; at++) volume->Free += !(volume->Bitmap[at / 8] >> at % 8 & 1);
    volume->Hint = volume->Clusters / 16;
    return NTFS_OK;
}

NTFS_STATUS NtfsMount(const NTFS_IO *io, NTFS_VOLUME **result) {
    NTFS_VOLUME *volume = io->Allocate(sizeof(*volume));
    if (!volume) return NTFS_NO_MEMORY;
    volume->Io = *io;
    NTFS_STATUS status = Mount(volume);
    if (status < 0) NtfsDismount(volume);
    else *result = volume;
    return status;
}

void NtfsDismount(NTFS_VOLUME *volume) {
    void (*release)(void *) = volume->Io.Free;
    while (volume->Files) {
        NTFS_FILE *file = volume->Files;
        volume->Files = file->Next;
        NtfsReleaseFile(file);
    }
    void *blocks[] = {volume->Staging, volume->Cache, volume->Pairs, volume->Block, volume->Spare, volume->Work, volume->Bitmap, volume->UpCase, volume};
    for (size_t i = 0; i < sizeof(blocks) / sizeof(*blocks); i++)
        if (blocks[i]) release(blocks[i]);
}

uint32_t NtfsClusterSize(const NTFS_VOLUME *volume) { return volume->ClusterSize; }
uint64_t NtfsFreeClusters(const NTFS_VOLUME *volume) { return volume->Free; }
uint32_t NtfsSerialNumber(const NTFS_VOLUME *volume) { return volume->Serial; }
void NtfsFragment(NTFS_VOLUME *volume, uint32_t clusters) { volume->Fragment = clusters; }
