/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
#include <time.h>
struct stat { int st_dev; unsigned long long st_ino; off_t st_size; struct timespec st_birthtimespec; };
int fstat(int, struct stat *);
