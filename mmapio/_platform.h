/* What differs between operating systems, behind one name each. Included by the boundary modules alone.
 *
 * Every function returns 0 (or a count) or a negative errno, and touches no Python. A platform that lacks a
 * call answers -ENOTSUP, which the callers turn into an error that says so; `mmio_has` lists what there is.
 */
#ifndef MMIO_PLATFORM_H
#define MMIO_PLATFORM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__)
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#elif defined(__APPLE__)
#include <stdio.h>
#include <sys/sysctl.h>
#else
#error "mmapio runs on Linux and macOS; another platform needs its own boundary modules"
#endif

#if defined(__APPLE__)
/* xnu has open-file-description locks under Linux's names, in headers that are not always public. */
#ifndef F_OFD_SETLK
#define F_OFD_SETLK 90
#define F_OFD_SETLKW 91
#define F_OFD_GETLK 92
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif
#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif
#endif

static inline int mmio_outcome(int result) { return result < 0 ? -errno : 0; }

/* --- Making bytes durable ------------------------------------------------------------------------------ */

/* All of a file, the pages dirtied through mappings included. `base` and `count` name the mapping: Linux does not
 * need them. Never retried: after a failed sync the kernel has marked the pages clean, and a second one would lie. */
static inline int mmio_sync_file(int fd, void *base, size_t count) {
#if defined(__linux__)
    (void)base;
    (void)count;
    while (fdatasync(fd) < 0)
        if (errno != EINTR) return -errno;
    return 0;
#else
    if (base != NULL && count > 0 && msync(base, count, MS_SYNC) < 0) return -errno;
    if (fcntl(fd, F_FULLFSYNC) < 0) return fsync(fd) < 0 ? -errno : 0;
    return 0;
#endif
}

/* All of a file or directory, the metadata that nobody needs to read it back included. */
static inline int mmio_sync_all(int fd) {
#if defined(__APPLE__)
    if (fcntl(fd, F_FULLFSYNC) == 0) return 0;
#endif
    while (fsync(fd) < 0)
        if (errno != EINTR) return -errno;
    return 0;
}

static inline int mmio_sync_range(int fd, void *address, size_t count) {
    while (msync(address, count, MS_SYNC) < 0)
        if (errno != EINTR) return -errno;
#if defined(__APPLE__)
    /* There msync hands the pages to a drive that may keep them in its cache. */
    if (fcntl(fd, F_FULLFSYNC) < 0) return fsync(fd) < 0 ? -errno : 0;
#else
    (void)fd;
#endif
    return 0;
}

/* Have the kernel begin to write; promises nothing. `count` 0 means to the end of the file. */
static inline int mmio_start_writeback(int fd, void *address, uint64_t offset, uint64_t count) {
#if defined(__linux__)
    (void)address;
    return mmio_outcome(sync_file_range(fd, (off_t)offset, (off_t)count, SYNC_FILE_RANGE_WRITE));
#else
    (void)fd;
    (void)offset;
    return count ? mmio_outcome(msync(address, count, MS_ASYNC)) : 0;
#endif
}

/* --- Space in a file ----------------------------------------------------------------------------------- */

/* The length of a file, or a negative errno. On Linux it is asked for nothing else: a file whose times were asked for gets a new one at
 * its next change, however soon, and that is a block more for the next sync to write (multigrain timestamps, since 6.13). */
static inline int64_t mmio_size(int fd) {
    struct stat found;
#if defined(__linux__)
    unsigned char raw[256];
    int64_t size;
    if (syscall(SYS_statx, fd, "", 0x1000 /* AT_EMPTY_PATH */, 0x200U /* STATX_SIZE */, raw) == 0) {
        memcpy(&size, raw + 40, sizeof size);
        return size;
    }
    if (errno != ENOSYS) return -errno;
#endif
    if (fstat(fd, &found) < 0) return -errno;
    return found.st_size;
}

static inline int mmio_set_blocks_aside(int fd, uint64_t offset, uint64_t count) {
    /* The kernel compares a new length with the process's limit, and this call gives none: it would take what there is of the disk, from
     * everybody, for a length that is refused then. */
    struct rlimit most;
    if (getrlimit(RLIMIT_FSIZE, &most) == 0 && most.rlim_cur != RLIM_INFINITY &&
        (count > most.rlim_cur || offset > most.rlim_cur - count))
        return -EFBIG;
#if defined(__linux__)
    return mmio_outcome(fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)count));
#else
    fstore_t wish = {F_ALLOCATEALL, F_PEOFPOSMODE, 0, (off_t)count, 0};
    (void)offset;
    if (fcntl(fd, F_PREALLOCATE, &wish) < 0) return errno == ENOTSUP ? -EOPNOTSUPP : -errno;
    return 0;
#endif
}

static inline int mmio_allocate(int fd, uint64_t offset, uint64_t count) {
    /* First the blocks, beyond the end; then the end, which on Linux this call cannot bring down if another has moved it on. */
    int failure = mmio_set_blocks_aside(fd, offset, count);
    if (failure < 0) return failure;
    /* Blocks take their time. Of a file that was cut meanwhile the rest would come back, as a hole. */
    if (mmio_size(fd) < (int64_t)offset) return -EFAULT;
#if defined(__linux__)
    return mmio_outcome(fallocate(fd, 0, (off_t)(offset + count - 1), 1));
#else
    return mmio_outcome(ftruncate(fd, (off_t)(offset + count)));
#endif
}

/* Bytes behind the end of a file, which was at `end` a moment ago. Where it is by now is the kernel's to find out, if it can: should another
 * have cut the file in between, nothing in it comes back, and should he have added to it, nothing of that is overwritten. */
static inline int64_t mmio_append(int fd, const void *data, size_t count, uint64_t end) {
    int64_t wrote;
    do {
#if defined(__linux__) && defined(RWF_APPEND)
        struct iovec piece = {(void *)data, count};
        wrote = pwritev2(fd, &piece, 1, (off_t)end, RWF_APPEND);
        if (wrote < 0 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL))
#endif
            wrote = pwrite(fd, data, count, (off_t)end);
    } while (wrote < 0 && errno == EINTR);
    return wrote < 0 ? -errno : wrote;
}

/* Zeros in a range whose blocks stay: as newly set aside, of no page in memory. */
static inline int mmio_zero_range(int fd, uint64_t offset, uint64_t count) {
#if defined(__linux__)
    return mmio_outcome(fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)count));
#else
    (void)fd, (void)offset, (void)count;
    return -EOPNOTSUPP;
#endif
}

/* Gives the blocks of a range back; it reads as zeros. On macOS the range must be made of whole blocks. */
static inline int mmio_punch_hole(int fd, uint64_t offset, uint64_t count) {
#if defined(__linux__)
    return mmio_outcome(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)count));
#else
    fpunchhole_t hole = {0, 0, (off_t)offset, (off_t)count};
    return mmio_outcome(fcntl(fd, F_PUNCHHOLE, &hole));
#endif
}

/* Share the blocks of `from` with the empty file `to`, where the file system can. */
static inline int mmio_reflink(int to, int from) {
#if defined(__linux__)
    /* _IOW(0x94, 9, int): FICLONE, by number since <linux/fs.h> collides with <sys/mount.h>. */
    return mmio_outcome(ioctl(to, 0x40049409UL, from));
#else
    (void)to;
    (void)from;
    return -ENOTSUP;
#endif
}

/* Bytes copied inside the kernel, 0 at the end of `from`. */
static inline int64_t mmio_copy_range(int to, int from, uint64_t offset, size_t count) {
#if defined(__linux__)
    off_t in = (off_t)offset, out = (off_t)offset;
    ssize_t done = copy_file_range(from, &in, to, &out, count, 0);
    return done < 0 ? -errno : done;
#else
    (void)to;
    (void)from;
    (void)offset;
    (void)count;
    return -ENOTSUP;
#endif
}

/* A descriptor of a new file in this directory that has no name yet: it goes with its last one, unless it is given one. */
static inline int mmio_open_unnamed(int directory) {
#if defined(__linux__)
    /* O_TMPFILE, whose declaration is in headers that differ. */
    int fd = openat(directory, ".", 020000000 | O_DIRECTORY | O_RDWR | O_CLOEXEC, 0600);
    return fd < 0 ? -errno : fd;
#else
    (void)directory;
    return -EOPNOTSUPP;
#endif
}

/* Rename within one directory, never over something that has the name: -EEXIST. */
static inline int mmio_rename_new(int directory, const char *from, const char *to) {
#if defined(__linux__)
    /* By number: renameat2 with RENAME_NOREPLACE, whose declarations are in headers that differ. */
    return mmio_outcome((int)syscall(SYS_renameat2, directory, from, directory, to, 1U));
#else
    return mmio_outcome(renameatx_np(directory, from, directory, to, 0x00000004 /* RENAME_EXCL */));
#endif
}

/* Have the page cache filled from the file's side. */
static inline int mmio_prefetch_file(int fd, uint64_t offset, uint64_t count) {
#if defined(__linux__)
    return -posix_fadvise(fd, (off_t)offset, (off_t)count, POSIX_FADV_WILLNEED);
#else
    while (count > 0) {
        struct radvisory part = {(off_t)offset, (int)(count < (1 << 30) ? count : (1 << 30))};
        if (fcntl(fd, F_RDADVISE, &part) < 0) return -errno;
        offset += (uint64_t)part.ra_count;
        count -= (uint64_t)part.ra_count;
    }
    return 0;
#endif
}

/* --- Memory -------------------------------------------------------------------------------------------- */

/* Pieces of advice by number of our own, in the order of `mmapio.options.MmapAdvice`; -1 where the platform lacks one. */
enum {
    MMIO_NORMAL, MMIO_RANDOM, MMIO_SEQUENTIAL, MMIO_WILL_NEED, MMIO_DONT_NEED, MMIO_COLD, MMIO_PAGE_OUT,
    MMIO_POPULATE_READ, MMIO_POPULATE_WRITE, MMIO_HUGE_PAGE, MMIO_NO_HUGE_PAGE, MMIO_ADVICE_COUNT
};

static const int mmio_advice[MMIO_ADVICE_COUNT] = {
    MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED,
#if defined(__linux__)
    /* By number: headers older than the kernel lack the names. */
    20 /* COLD, 5.4 */, 21 /* PAGEOUT, 5.4 */, 22 /* POPULATE_READ, 5.14 */, 23 /* POPULATE_WRITE, 5.14 */,
    14 /* HUGEPAGE */, 15 /* NOHUGEPAGE */
#else
    -1, -1, -1, -1, -1, -1
#endif
};

static inline int mmio_advise(void *address, size_t count, int advice) {
    int number = mmio_advice[advice];
    if (number < 0) return -ENOTSUP;
    while (madvise(address, count, number) < 0) {
        /* EAGAIN: the kernel was short of something for a moment. An interrupted populate has done a part. */
        if (errno != EINTR && errno != EAGAIN) return -errno;
        if (number != 22 && number != 23) return -errno;
    }
    return 0;
}

static inline int mmio_resident(void *address, size_t count, unsigned char *pages) {
#if defined(__linux__)
    return mmio_outcome(mincore(address, count, pages));
#else
    return mmio_outcome(mincore(address, count, (char *)pages));
#endif
}

/* --- Waiting on a word --------------------------------------------------------------------------------- */

/* Sleeps while the 32 bits at `word` equal `expected`, in whichever process they are changed and woken.
 * `timeout_ns` below 0 means for ever. -EAGAIN: the word differs; -ETIMEDOUT; -EINTR: a signal came. */
static inline int mmio_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns) {
#if defined(__linux__)
    struct timespec limit = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    /* FUTEX_WAIT, and not the private kind: the key is the file's page, not this process' address. */
    return mmio_outcome((int)syscall(SYS_futex, word, 0, expected, timeout_ns < 0 ? NULL : &limit, NULL, 0));
#else
    /* No futex: look again, at intervals that grow from 50 us to 5 ms. */
    uint64_t left = timeout_ns < 0 ? UINT64_MAX : (uint64_t)timeout_ns;
    long pause_ns = 50000;
    while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == expected) {
        struct timespec pause = {0, pause_ns};
        if (left < (uint64_t)pause_ns) pause.tv_nsec = (long)left;
        if (left == 0) return -ETIMEDOUT;
        if (nanosleep(&pause, NULL) < 0) return -errno;
        left = left == UINT64_MAX ? left : left - (uint64_t)pause.tv_nsec;
        if (pause_ns < 5000000) pause_ns *= 2;
    }
    return -EAGAIN;
#endif
}

/* How many waiters were woken; where waiters look by themselves, 0. */
static inline int mmio_wake(uint32_t *word, int count) {
#if defined(__linux__)
    int woken = (int)syscall(SYS_futex, word, 1 /* FUTEX_WAKE */, count, NULL, NULL, 0);
    return woken < 0 ? -errno : woken;
#else
    (void)word;
    (void)count;
    return 0;
#endif
}

/* A fence for others. Whoever stores one word and then looks at another, without a fence because he does it a million times a
 * second, registers; who sleeps between the two has him fenced. Where there is no such call it fails, and the sleeper must look
 * again by himself after a while. */
static inline int mmio_register_for_fences(void) {
#if defined(__linux__) && defined(SYS_membarrier)
    return mmio_outcome((int)syscall(SYS_membarrier, 1 << 2 /* REGISTER_GLOBAL_EXPEDITED */, 0, 0));
#else
    return -ENOTSUP;
#endif
}

static inline int mmio_fence_others(void) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#if defined(__linux__) && defined(SYS_membarrier)
    return mmio_outcome((int)syscall(SYS_membarrier, 1 << 1 /* GLOBAL_EXPEDITED */, 0, 0));
#else
    return -ENOTSUP;
#endif
}

/* --- What a file is ------------------------------------------------------------------------------------ */

#if defined(__linux__)
/* From Linux 6.8; older headers lack the name, older kernels leave the bit clear in the answer. */
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x00004000U
#endif
#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x00001000U
#endif
#endif

/* The name of this boot as text, 36 characters of a UUID; -ENOTSUP where it is a file to be read. */
static inline int mmio_boot_uuid(char *text, size_t count) {
#if defined(__APPLE__)
    return mmio_outcome(sysctlbyname("kern.bootsessionuuid", text, &count, NULL, 0));
#else
    (void)text;
    (void)count;
    return -ENOTSUP;
#endif
}

/* Device, inode, birth in seconds and nanoseconds, mount, whether the mount's number is never used again. */
static inline int mmio_identity(int fd, uint64_t out[6]) {
#if defined(__linux__)
    /* struct statx as the kernel's ABI lays it out; only C libraries newer than some we support name stx_mnt_id. */
    unsigned char raw[256] = {0};
    uint32_t mask, nsec, major, minor;
    uint64_t ino, mnt;
    int64_t sec;
    if (syscall(SYS_statx, fd, "", 0x1000 /* AT_EMPTY_PATH */, 0x00000fffU | STATX_MNT_ID | STATX_MNT_ID_UNIQUE, raw) < 0)
        return -errno;
    memcpy(&mask, raw, 4);
    memcpy(&ino, raw + 32, 8);
    memcpy(&sec, raw + 80, 8);
    memcpy(&nsec, raw + 88, 4);
    memcpy(&major, raw + 136, 4);
    memcpy(&minor, raw + 140, 4);
    memcpy(&mnt, raw + 144, 8);
    out[0] = ((uint64_t)major << 32) | minor;
    out[1] = ino;
    out[2] = (mask & 0x800U) ? (uint64_t)sec : 0;
    out[3] = (mask & 0x800U) ? nsec : 0;
    out[4] = (mask & (STATX_MNT_ID | STATX_MNT_ID_UNIQUE)) ? mnt : 0;
    out[5] = (mask & STATX_MNT_ID_UNIQUE) != 0;
    return 0;
#else
    struct stat found;
    if (fstat(fd, &found) < 0) return -errno;
    out[0] = (uint64_t)found.st_dev;
    out[1] = (uint64_t)found.st_ino;
    out[2] = (uint64_t)found.st_birthtimespec.tv_sec;
    out[3] = (uint64_t)found.st_birthtimespec.tv_nsec;
    out[4] = 0;
    out[5] = 0;
    return 0;
#endif
}

#endif
