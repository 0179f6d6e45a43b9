/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
#include <stddef.h>
void *memcpy(void *, const void *, size_t);
void *memmove(void *, const void *, size_t);
void *memset(void *, int, size_t);
