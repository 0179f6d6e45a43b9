/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
typedef struct { long __sig; char __opaque[56]; } pthread_mutex_t;
int pthread_atfork(void (*)(void), void (*)(void), void (*)(void));
