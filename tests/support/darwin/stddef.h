/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
typedef __SIZE_TYPE__ size_t;
#define NULL ((void *)0)
