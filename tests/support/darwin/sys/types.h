/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
#include <stddef.h>
typedef long long off_t;
typedef long ssize_t;
typedef int pid_t;
typedef long time_t;
