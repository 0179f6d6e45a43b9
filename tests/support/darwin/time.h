/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
#include <sys/types.h>
struct timespec { time_t tv_sec; long tv_nsec; };
enum { CLOCK_REALTIME = 0 };
int clock_gettime(int, struct timespec *);
int nanosleep(const struct timespec *, struct timespec *);
