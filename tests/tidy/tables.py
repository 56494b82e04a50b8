"""What the rules of tidy_test.py look for. A rule's exception stands here with its reason."""

TEXT_SUFFIXES = {
    ".cpp",
    ".hpp",
    ".c",
    ".cmake",
    ".txt",
    ".md",
    ".py",
    ".sh",
    ".fbs",
    ".json",
    ".pml",
    ".supp",
    ".yml",
    ".jsonl",
}
CODE_SUFFIXES = (".cpp", ".hpp", ".py", ".sh", ".fbs", ".cmake", "CMakeLists.txt", "edges.txt")
DATA_SUFFIXES = ("_data.cpp", "_data.hpp")  # tables of numbers

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
COLUMNS_MAX = 100

TOP_FOLDERS = "runtime|transports|launcher|examples|tests|perf|docs|cmake"

# Vendor headers and the only folders that may include them.
VENDOR_HEADERS = {
    "ucp/": ("transports/ucx/",),
    "nccl": ("transports/nccl/",),
    "cuda": ("transports/cuda/",),
    "torch/": ("runtime/bindings/torch/",),
    "hwy/": ("runtime/collective/",),
    "flatbuffers/": ("runtime/control/",),
    # Digests of healed state, and the check sums of the coordinator's file.
    "xxhash": ("runtime/state/", "launcher/wal"),
    "nlohmann/": ("launcher/", "tests/", "perf/"),
    "CLI/": ("launcher/", "tests/", "perf/", "examples/"),
    # The rank's library stays light: cryptography belongs to agent and coordinator; example 04
    # hashes its weights.
    "openssl/": ("runtime/secure/", "tests/", "examples/"),
    "boost/": ("launcher/",),
}

# Decisions without a clock, thread, socket, random source or environment.
PURE_FILES = [
    r"runtime/membership/",
    r"runtime/state/planner",
    r"runtime/collective/schedule",
    r"runtime/control/codec",
    r"runtime/supervisor/",
    r"launcher/launch_environment",
]
FORBIDDEN_IN_PURE = {
    r"\b\w*[Cc]lock\w*::now\b|\bclock_gettime\b|\bgettimeofday\b": "time is an argument",
    r"\bstd::(?:this_thread|j?thread|mutex|condition_variable|async|future)\b": "the shell waits",
    r"\bpthread_\w+": "the shell has threads",
    r"\b(?:socket|sendmsg|recvmsg|epoll_\w+|eventfd)\s*\(": "return an effect, the shell talks",
    r"\bstd::random_device\b|\bstd::mt19937\w*|\bs?rand\s*\(": "randomness is an argument",
    r"\b(?:secure_)?getenv\s*\(": "the environment is read by the shell",
    r"\b(?:std::)?(?:if|of|f)stream\b|\bfopen\s*\(|\b::open\s*\(": "files belong to the shell",
    r"\bsleep_(?:for|until)\b|\bu?sleep\s*\(": "nothing here waits",
    r"\bdefault\s*:": "write every cell out, so that a new one is not forgotten",
}
# A plan's position is an integer, so the compiler cannot say which cases are left.
DEFAULT_CASE_ALLOWED = r"runtime/collective/schedule"

SLEEPS = (
    r"\bsleep_(?:for|until)\b|\bu?sleep\s*\(|\bnanosleep\s*\(|\btime\.sleep\b|^\s*sleep\s+[0-9]"
)

LEFTOVERS = {
    r"\b(?:NOCOMMIT|TODO|FIXME)\b": "finish it, or say in the docs what is missing",
    r"/(?:work|root|home)/\w+|/tmp/b/": "a path of one machine",
    r"(?m)^(?:<{7}|>{7}) ": "a merge conflict",
}

SYNONYMS = {
    "peer": "rank, or member where the incarnation matters",
    "node": "host",
    "worker": "rank",
}
# Technical terms of others that are no synonyms of ours. Each pattern with its reason.
SYNONYMS_ALLOWED = [
    r"(?:SO_)?PEERCRED|\bpeer\s+credentials?\b",  # the kernel's word for a socket's other end
    r"\bPEER\s+error handling",  # UCX's name of an endpoint mode
    r"\bUCX worker|\bone worker\b|\bUCP worker",  # UCX's name of a progress context
    r"REGROUP_NODE_RANK|NODE_RANK|node_rank|NUM_NODES",  # torchrun's and our variables
    r"\bNUMA nodes?\b",
    r'\bveth peer\b|"veth", "peer"',  # a word of ip(8)
    r"\bpeer/node/worker\b|\bpeer\b, \bnode\b(?:,| and) \bworker\b",  # the deny list, quoted
]
