# Constants, structures and functions of this module are for native code only: see format.pxd.
