/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
#include <sys/types.h>
enum { F_FULLFSYNC = 51, F_PREALLOCATE = 42, F_PUNCHHOLE = 99, F_RDADVISE = 44, F_ALLOCATEALL = 4, F_PEOFPOSMODE = 3 };
typedef struct fstore { unsigned fst_flags; int fst_posmode; off_t fst_offset, fst_length, fst_bytesalloc; } fstore_t;
typedef struct fpunchhole { unsigned fp_flags, reserved; off_t fp_offset, fp_length; } fpunchhole_t;
struct radvisory { off_t ra_offset; int ra_count; };
int fcntl(int, int, ...);
