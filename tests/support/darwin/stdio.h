#pragma once
int renameatx_np(int, const char *, int, const char *, unsigned int);
