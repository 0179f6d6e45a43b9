/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
#include <stdint.h>
typedef uint64_t rlim_t;
struct rlimit { rlim_t rlim_cur, rlim_max; };
#define RLIMIT_FSIZE 1
#define RLIM_INFINITY (((uint64_t)1 << 63) - 1)
int getrlimit(int, struct rlimit *);
