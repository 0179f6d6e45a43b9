/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
#include <stdint.h>
typedef struct _opaque_pthread_t *pthread_t;
int pthread_threadid_np(pthread_t, uint64_t *);
typedef struct { long __sig; char __opaque[56]; } pthread_mutex_t;
