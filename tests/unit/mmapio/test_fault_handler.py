"""Our SIGBUS handler among others: what is not ours happens as it would without us.

Each test runs a fresh interpreter, for nothing is more global than a signal handler.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sanitizers import not_below_sanitizers
from tests.unit.mmapio.processes import ROOT, TIMEOUT_SECONDS

#: What a child that loops for ever ends by.
ALARM_SECONDS = 100

PRELUDE = f"""
import ctypes, faulthandler, mmap, os, resource, signal, sys, threading
sys.path.append({str(ROOT)!r})
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.alarm({ALARM_SECONDS})
directory, library, *rest = sys.argv[1:]
SIZE = 64 * mmap.PAGESIZE
FAR = SIZE - 8

def write(name):
    with open(os.path.join(directory, name), "wb") as file:
        file.write(b"x" * SIZE)
    return os.path.join(directory, name)

def open_ours(name="ours"):
    from mmapio import MemoryMappedFile
    return MemoryMappedFile.open_rw(write(name))

def lose(mapped):
    os.truncate(mapped.path, 0)

def restore(mapped):
    write(os.path.basename(mapped.path))
    mapped.refresh()

def ends(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__
    return "no error"

def lost_stdlib_map():
    path = write("other")
    with open(path, "r+b") as file:
        found = mmap.mmap(file.fileno(), SIZE)
    os.truncate(path, 0)
    return found

def say(*words):
    print(*words, flush=True)
"""

SOURCE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct sigaction previous;
static volatile int calls;
int handler_calls(void) { return calls; }

/* Maps a page over one that is missing, wherever it is. */
static void mend(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    calls++;
    if (info->si_code <= 0) return;
    mmap((void *)((uintptr_t)info->si_addr & ~(uintptr_t)4095), 4096, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

/* Jumps back to who asked for it; counts what was sent; passes everything else on. */
static __thread sigjmp_buf back;
static __thread volatile int asked;
static void jump(int number, siginfo_t *info, void *context) {
    calls++;
    if (asked) siglongjmp(back, 1);
    if (info->si_code <= 0) return;
    if (previous.sa_flags & SA_SIGINFO) previous.sa_sigaction(number, info, context);
    else signal(number, SIG_DFL);
}

/* Counts, as handlers were before there was more to know than the number. */
static void count(int number) { (void)number, calls++; }

int install(int which, int flags) {
    struct sigaction wanted;
    memset(&wanted, 0, sizeof wanted);
    /* Nothing disturbs them: as of many a library that reports crashes. */
    sigfillset(&wanted.sa_mask);
    wanted.sa_flags = flags;
    if (which == 2) wanted.sa_handler = count;
    else {
        wanted.sa_flags |= SA_SIGINFO;
        wanted.sa_sigaction = which ? jump : mend;
    }
    return sigaction(SIGBUS, &wanted, &previous);
}

int probe(const volatile unsigned char *at) {
    if (sigsetjmp(back, 1)) { asked = 0; return -1; }
    asked = 1;
    int found = *at;
    asked = 0;
    return found;
}

int errno_after_reading(const volatile unsigned char *at) {
    errno = 77;
    (void)*at;
    /* So that the compiler does not remember it. */
    __asm__ volatile("" ::: "memory");
    return *(volatile int *)&errno;
}

/* Reads a byte where the stack is used up but for a rest too small for a handler; the thread has another. */
static char other_stack[256 << 10];
static const volatile unsigned char *wanted_byte;
static int read_far_down(uintptr_t end) {
    volatile char taken[512];
    taken[0] = 1;
    if ((uintptr_t)taken - end > 2048) return read_far_down(end) + taken[0];
    return *wanted_byte;
}
static void *run_far_down(void *argument) {
    stack_t other = {.ss_sp = other_stack, .ss_size = sizeof other_stack};
    pthread_attr_t about;
    void *end;
    size_t size;
    (void)argument;
    sigaltstack(&other, NULL);
    pthread_getattr_np(pthread_self(), &about);
    pthread_attr_getstack(&about, &end, &size);
    return (void *)(intptr_t)read_far_down((uintptr_t)end);
}
int read_with_a_full_stack(const volatile unsigned char *at) {
    pthread_t thread;
    void *result = NULL;
    wanted_byte = at;
    if (pthread_create(&thread, NULL, run_far_down, NULL)) return -1;
    pthread_join(thread, &result);
    return (int)(intptr_t)result;
}

/* As the kernel tells of memory that broke and that nobody has touched yet, or of a fault of another kind. */
int send(int code) {
    siginfo_t info;
    memset(&info, 0, sizeof info);
    info.si_signo = SIGBUS;
    info.si_code = code;
    return (int)syscall(SYS_rt_sigqueueinfo, getpid(), SIGBUS, &info);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signal handlers in C."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: NOT TESTED how our SIGBUS handler gets along with others")
    directory = tmp_path_factory.mktemp("handlers")
    source, made = directory / "handlers.c", directory / "handlers.so"
    source.write_text(SOURCE)
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        "-pthread",
        "-Wall",
        "-Werror",
        "-o",
        str(made),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


def run(directory: Path, code: str, library: Path | None = None) -> subprocess.CompletedProcess[str]:
    """How a fresh interpreter ends that runs `code` after the prelude."""
    load = "handlers = ctypes.CDLL(library)\n" if library else ""
    command = [sys.executable, "-c", PRELUDE + load + code, str(directory), str(library)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode != -signal.SIGALRM, f"it hung:\n{done.stdout}{done.stderr}"
    return done


def said(directory: Path, code: str, library: Path | None = None) -> list[str]:
    """The words that `code` printed; it must end well."""
    done = run(directory, code, library)
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout.split()


def dies_by_sigbus(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether the process was ended by the fault, having come as far as it should."""
    assert done.stdout.split()[-1:] == ["touching"], done.stdout + done.stderr
    return done.returncode == -signal.SIGBUS


# Faults that are nobody's.


def test_the_control_dies_without_us(tmp_path: Path) -> None:
    """What the tests below take for the way of the world."""
    assert dies_by_sigbus(run(tmp_path, "lost = lost_stdlib_map(); say('touching'); lost[FAR]"))


DISPOSITIONS = {
    "the default": "",
    "ignored": "signal.signal(signal.SIGBUS, signal.SIG_IGN)",
    "the default, after another": (
        "signal.signal(signal.SIGBUS, print); signal.signal(signal.SIGBUS, signal.SIG_DFL)"
    ),
}


@pytest.mark.parametrize("before", DISPOSITIONS.values(), ids=DISPOSITIONS.keys())
@pytest.mark.parametrize("use", ["lost[FAR]", "lost[FAR] = 1", "bytes(lost)", "memoryview(lost)[FAR]"])
def test_a_mapping_that_is_not_ours_still_ends_the_process(tmp_path: Path, before: str, use: str) -> None:
    """To hide somebody else's fault is to let him go on with wrong data."""
    code = f"{before}\nmapped = open_ours()\nlost = lost_stdlib_map()\nsay('touching')\n{use}"
    assert dies_by_sigbus(run(tmp_path, code))


def test_a_mapping_that_took_the_place_of_ours_still_ends_the_process(tmp_path: Path) -> None:
    """Addresses are used again; the handler must have forgotten who had them before."""
    code = """
from mmapio import MemoryMappedFile
mapped = MemoryMappedFile.open_ro(write("ours"))
address = mapped.address
mapped.close()
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
shared, fixed_noreplace = 1, 0x100000
file = os.open(write("other"), os.O_RDWR)
where = (ctypes.c_void_p(address), ctypes.c_size_t(SIZE), mmap.PROT_READ, shared | fixed_noreplace)
assert libc.mmap(*where, file, ctypes.c_long(0)) == address
os.ftruncate(file, 0)
say('touching')
ctypes.string_at(address, 1)
"""
    assert dies_by_sigbus(run(tmp_path, code))


@pytest.mark.parametrize("use", ["array[-1] = 1", "array[:] = 1", "array.sum()", "view[-1]", "view[-1] = 1"])
def test_foreign_code_in_a_writable_view_ends_the_process(tmp_path: Path, use: str) -> None:
    """Zeros there would swallow the next store; a handler that came back without them would loop for ever."""
    pytest.importorskip("numpy", reason="no numpy: NOT TESTED what an array over a cut writable view does")
    code = (
        "import numpy\nmapped = open_ours()\nview = memoryview(mapped.as_slice_mut())\n"
        f"array = numpy.frombuffer(view, dtype='u1')\nlose(mapped)\nsay('touching')\n{use}"
    )
    assert dies_by_sigbus(run(tmp_path, code))


# faulthandler.


@pytest.mark.parametrize(
    "order",
    [
        "faulthandler.enable(); mapped = open_ours()",
        "mapped = open_ours(); faulthandler.enable()",
        "mapped = open_ours(); faulthandler.enable(); second = open_ours('second')",
        "faulthandler.enable(); mapped = open_ours(); faulthandler.enable(); second = open_ours('second')",
    ],
)
def test_faulthandler_dumps_once_and_the_process_ends(tmp_path: Path, order: str) -> None:
    """It calls whom it found before itself by raising the signal again, and so do we: two that never end."""
    done = run(tmp_path, f"{order}\nlost = lost_stdlib_map()\nsay('touching')\nlost[FAR]")
    assert dies_by_sigbus(done)
    assert done.stderr.count("Fatal Python error: Bus error") == 1, done.stderr


@pytest.mark.parametrize(
    "order",
    [
        "faulthandler.enable(); mapped = open_ours(); faulthandler.disable()",
        "mapped = open_ours(); faulthandler.enable(); faulthandler.disable()",
        "mapped = open_ours(); faulthandler.enable(); second = open_ours('second'); faulthandler.disable()",
    ],
)
def test_a_faulthandler_that_was_switched_off_ends_nothing_but_hangs_nothing(
    tmp_path: Path, order: str
) -> None:
    """Switched off it returns without a word, to an instruction that faults again: for ever, if we let it."""
    done = run(tmp_path, f"{order}\nlost = lost_stdlib_map()\nsay('touching')\nlost[FAR]")
    assert dies_by_sigbus(done)
    assert "Fatal Python error" not in done.stderr


@pytest.mark.parametrize("how", ["read_bytes(FAR, 8)", "as_slice()[FAR]", "atomic_u64(FAR).load()"])
def test_faulthandler_enabled_before_opening_does_not_notice_our_faults(tmp_path: Path, how: str) -> None:
    """A traceback on stderr for an exception that somebody handles looks like a crash."""
    code = f"faulthandler.enable(); mapped = open_ours(); lose(mapped); say(ends(lambda: mapped.{how}))"
    done = run(tmp_path, code)
    assert (done.returncode, done.stdout.split()) == (0, ["MappingFault"]), done.stderr
    assert done.stderr == ""


def test_faulthandler_enabled_after_opening_leaves_our_calls_guarded(tmp_path: Path) -> None:
    """It takes our place until the next file is opened, and passes a fault on without saying what it was."""
    code = """
mapped = open_ours()
faulthandler.enable()
lose(mapped)
say(ends(lambda: mapped.read_bytes(FAR, 8)))
restore(mapped)
say(mapped[FAR])
lose(mapped)
say(ends(lambda: mapped.read_bytes(FAR, 8)))
"""
    assert said(tmp_path, code) == ["MappingFault", str(ord("x")), "MappingFault"]


@not_below_sanitizers("it has an alternate stack of its own, and reports the planted overflow")
def test_the_alternate_stack_can_be_used_again_after_a_jump(tmp_path: Path) -> None:
    """Our handler leaves faulthandler's stack by a jump: it must be free when the thread's own overflows."""
    code = """
faulthandler.enable()
mapped = open_ours()
for _ in range(1000):
    lose(mapped)
    assert ends(lambda: mapped.read_bytes(FAR, 8)) == "MappingFault"
    restore(mapped)
say('touching')
faulthandler._stack_overflow()
"""
    done = run(tmp_path, code)
    assert done.stdout.split() == ["touching"]
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr


# Handlers in C.

MEND, JUMP, COUNT = range(3)


@pytest.mark.parametrize("which", [MEND, JUMP])
@pytest.mark.parametrize("places", ["range(0, SIZE, mmap.PAGESIZE)", "[0] * 1000"], ids=["pages", "one byte"])
def test_a_handler_that_was_there_before_goes_on_mending(
    tmp_path: Path, library: Path, which: int, places: str
) -> None:
    """Other libraries guard their mappings as we do: who watches for endless faults must not count jumps."""
    code = f"""
handlers.install({which}, 0)
mapped = open_ours()
lost = lost_stdlib_map()
start = ctypes.addressof(ctypes.c_char.from_buffer(lost))
say(*{{handlers.probe(ctypes.c_void_p(start + at)) for at in {places}}})
calls = handlers.handler_calls()
lose(mapped)
say(ends(lambda: mapped.read_bytes(FAR, 8)), handlers.handler_calls() == calls)
"""
    assert said(tmp_path, code, library) == [str(-which), "MappingFault", "True"]


def test_a_signal_that_is_sent_after_a_handler_jumped_is_heard(tmp_path: Path, library: Path) -> None:
    """A handler that left by a jump is not still at work, however deep in the stack the next signal comes."""
    code = f"""
handlers.install({JUMP}, 0)
mapped = open_ours()
lost = lost_stdlib_map()
start = ctypes.addressof(ctypes.c_char.from_buffer(lost))
handlers.probe(ctypes.c_void_p(start))
def deeper(depth):
    # Through C, so that the stack grows.
    if depth:
        max([1], key=lambda _: deeper(depth - 1))
    else:
        os.kill(os.getpid(), signal.SIGBUS)
for depth in range(30):
    deeper(depth)
say(handlers.handler_calls())
"""
    assert said(tmp_path, code, library) == ["31"]


@pytest.mark.parametrize("nodefer", [True, False])
def test_a_handler_put_over_ours_that_passes_on_leaves_us_working(
    tmp_path: Path, library: Path, nodefer: bool
) -> None:
    """The kernel blocks signals while such a handler runs, and we leave it by a jump: they must not stay."""
    code = f"""
mapped = open_ours()
handlers.install({JUMP}, {0x40000000 if nodefer else 0})
before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
for number in range(3):
    lose(mapped)
    say(ends(lambda: mapped.read_bytes(FAR, 8)))
    os.truncate(mapped.path, SIZE)
    mapped.refresh()
    handlers.install({JUMP}, {0x40000000 if nodefer else 0}) if number else None
say(signal.pthread_sigmask(signal.SIG_BLOCK, []) == before)
"""
    assert said(tmp_path, code, library) == ["MappingFault"] * 3 + ["True"]


def test_handlers_that_pass_on_to_each_other_in_a_ring_end(tmp_path: Path, library: Path) -> None:
    """It over ours, ours over it: opening a file puts us on top again."""
    code = f"""
mapped = open_ours()
handlers.install({JUMP}, 0)
second = open_ours("second")
lose(mapped)
say(ends(lambda: mapped.read_bytes(FAR, 8)))
lost = lost_stdlib_map()
say('touching')
lost[FAR]
"""
    done = run(tmp_path, code, library)
    assert dies_by_sigbus(done)
    assert done.stdout.split()[0] == "MappingFault"


def test_errno_and_rounding_are_as_they_were(tmp_path: Path, library: Path) -> None:
    """Who reads a view, or calls us, keeps the state of the thread, the floating-point unit's included."""
    code = """
mathematics = ctypes.CDLL("libm.so.6")
mapped = open_ours()
import numpy
start = numpy.frombuffer(mapped.as_slice(), dtype="u1").ctypes.data
downward = {"x86_64": 0x400, "aarch64": 0x800000}[os.uname().machine]
assert mathematics.fesetround(downward) == 0
lose(mapped)
say(handlers.errno_after_reading(ctypes.c_void_p(start + FAR)), mathematics.fegetround() == downward)
restore(mapped)
lose(mapped)
say(ends(lambda: mapped.read_bytes(FAR, 8)), mathematics.fegetround() == downward)
"""
    pytest.importorskip("numpy", reason="no numpy: NOT TESTED that errno survives a fault")
    assert said(tmp_path, code, library) == ["77", "True", "MappingFault", "True"]


# Signals that somebody sends.

SENT = {
    "os.kill": "os.kill(os.getpid(), signal.SIGBUS)",
    "raise_signal": "signal.raise_signal(signal.SIGBUS)",
    "pthread_kill": "signal.pthread_kill(threading.get_ident(), signal.SIGBUS)",
    "broken memory": "handlers.send(5)",
}
LISTENERS = {
    "nobody": "",
    "ignored": "signal.signal(signal.SIGBUS, signal.SIG_IGN)",
    "Python": "signal.signal(signal.SIGBUS, lambda number, frame: say('heard', int(number)))",
    "C": "handlers.install(2, 0)",
    "faulthandler": "faulthandler.enable()",
}


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT.keys())
@pytest.mark.parametrize("listener", LISTENERS.values(), ids=LISTENERS.keys())
@pytest.mark.parametrize("times", [1, 12])
def test_a_signal_that_is_sent_does_what_it_does_without_us(
    tmp_path: Path, library: Path, sent: str, listener: str, times: int
) -> None:
    """It is no fault: it must reach whoever listened before, and end the process if nobody did."""
    after = f"for _ in range({times}):\n    {sent}\nsay('survived', handlers.handler_calls())"
    with_us = run(tmp_path, f"{listener}\nmapped = open_ours()\n{after}", library)
    without = run(tmp_path, f"{listener}\n{after}", library)
    assert (with_us.returncode, with_us.stdout) == (without.returncode, without.stdout)
    assert with_us.stderr.count("Fatal Python error") == without.stderr.count("Fatal Python error")


def test_a_signal_that_is_sent_is_not_taken_for_a_fault_nor_ends_the_guard(
    tmp_path: Path, library: Path
) -> None:
    """A handler that resets itself after passing one on guards nothing any more."""
    code = """
heard = []
signal.signal(signal.SIGBUS, lambda number, frame: heard.append(number))
mapped = open_ours()
for _ in range(20):
    os.kill(os.getpid(), signal.SIGBUS)
    handlers.send(5)
say(len(heard), mapped[FAR])
lose(mapped)
say(ends(lambda: mapped.read_bytes(FAR, 8)))
"""
    assert said(tmp_path, code, library) == ["40", str(ord("x")), "MappingFault"]


def test_a_python_handler_installed_before_does_not_hear_of_our_faults(tmp_path: Path) -> None:
    """It could do nothing about them, and its exception would come from nowhere."""
    code = """
heard = []
signal.signal(signal.SIGBUS, lambda number, frame: heard.append(number))
mapped = open_ours()
view = memoryview(mapped.as_slice())
lose(mapped)
say(ends(lambda: mapped.read_bytes(FAR, 8)), view[FAR], len(heard))
"""
    assert said(tmp_path, code) == ["MappingFault", "0", "0"]


def test_importing_installs_nothing(tmp_path: Path) -> None:
    """Who only imports us has the handlers that he had; the first file that is opened brings ours."""
    code = """
def caught():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (signal.SIGBUS - 1) & 1)
import mmapio
say(caught())
mapped = open_ours()
say(caught())
"""
    assert said(tmp_path, code) == ["False", "True"]


def test_a_thread_without_an_alternate_stack(tmp_path: Path) -> None:
    """Only the thread that enabled faulthandler has one; others fault on their own stack, however small."""
    code = """
faulthandler.enable()
mapped = open_ours()
view = memoryview(mapped.as_slice())
lose(mapped)
threading.stack_size(64 << 10)
found = []
def read():
    found.append(ends(lambda: mapped.read_bytes(FAR, 8)))
    found.append(view[FAR])
thread = threading.Thread(target=read)
thread.start()
thread.join()
say(*found)
"""
    assert said(tmp_path, code) == ["MappingFault", "0"]


@not_below_sanitizers("it has an alternate stack of its own, which the test replaces")
def test_a_thread_whose_stack_is_full(tmp_path: Path, library: Path) -> None:
    """The kernel needs some KiB for a handler to begin: of the alternate stack, where a thread has one."""
    code = """
mapped = open_ours()
import numpy
start = numpy.frombuffer(mapped.as_slice(), dtype="u1").ctypes.data
whole = handlers.read_with_a_full_stack(ctypes.c_void_p(start + FAR))
lose(mapped)
say(whole - handlers.read_with_a_full_stack(ctypes.c_void_p(start + FAR)), ends(lambda: mapped[FAR]))
"""
    pytest.importorskip("numpy", reason="no numpy: NOT TESTED that a fault needs no room on the stack")
    assert said(tmp_path, code, library) == [str(ord("x")), "MappingFault"]


def test_a_child_program_begins_with_the_default(tmp_path: Path) -> None:
    """A handler does not outlive exec; what is inherited is only that a signal is ignored."""
    code = """
import subprocess
mapped = open_ours()
done = subprocess.run([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGBUS)"])
say(done.returncode)
"""
    assert said(tmp_path, code) == [str(-signal.SIGBUS)]
