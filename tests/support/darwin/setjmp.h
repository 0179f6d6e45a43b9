/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
typedef int sigjmp_buf[49];
int sigsetjmp(sigjmp_buf, int) __attribute__((returns_twice));
void siglongjmp(sigjmp_buf, int) __attribute__((noreturn));
