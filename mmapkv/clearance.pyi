# Functions of this module are for native code only: see clearance.pxd.
