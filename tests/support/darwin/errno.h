/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
extern int *__error(void);
#define errno (*__error())
enum { EINTR = 4, EAGAIN = 35, EBUSY = 16, EFAULT = 14, EINVAL = 22, EFBIG = 27, ENOTSUP = 45, EOPNOTSUPP = 102, ETIMEDOUT = 60, EOWNERDEAD = 105 };
