# Structures and functions of this module are for native code only: see approach.pxd.
