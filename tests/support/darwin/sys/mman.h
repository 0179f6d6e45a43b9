/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
#include <sys/types.h>
enum { PROT_NONE = 0, PROT_READ = 1, PROT_WRITE = 2, MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_FIXED = 16, MAP_ANON = 0x1000 };
enum { MS_ASYNC = 1, MS_SYNC = 16 };
enum { MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED };
#define MAP_FAILED ((void *)-1)
void *mmap(void *, size_t, int, int, int, off_t);
int msync(void *, size_t, int);
int madvise(void *, size_t, int);
int mincore(const void *, size_t, char *);
