# Functions of this module are for native code only.
