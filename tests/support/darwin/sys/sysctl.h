/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
#include <stddef.h>
int sysctlbyname(const char *, void *, size_t *, void *, size_t);
