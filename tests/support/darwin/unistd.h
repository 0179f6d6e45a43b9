/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
#include <sys/types.h>
enum { _SC_PAGESIZE = 29 };
long sysconf(int);
pid_t getpid(void);
int ftruncate(int, off_t);
int fsync(int);
ssize_t pwrite(int, const void *, size_t, off_t);
