/* A mapping as the fault handler knows it. The functions are in _fault.h, which one module alone includes. */
#ifndef MMIO_SLOT_H
#define MMIO_SLOT_H

#include <stddef.h>
#include <stdint.h>

typedef struct mmio_slot {
    uintptr_t base;
    size_t count; /* 0: the slot is free; stored last, read first */
    int kind;
    uint64_t device, inode; /* of the file: two mappings of one file are the same bytes at two addresses */
    uintptr_t covered;      /* from here on there are zero pages */
    int faulted; /* set by the handler, never cleared while the slot is taken */
    struct mmio_slot *next_free;
} mmio_slot;

#endif
