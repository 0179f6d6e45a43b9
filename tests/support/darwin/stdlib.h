/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
#include <stddef.h>
void *calloc(size_t, size_t);
