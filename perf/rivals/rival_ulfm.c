/* What the loss of a rank costs Open MPI with ULFM, for perf/kills.py: rank VICTIM kills itself on
 * entering its operation OP; the others see an error, revoke, shrink, and reduce again, correctly.
 * Each rank holds BYTES of touched memory, and notes its times in FILE, which all of them map:
 * FILE outlives the killed one. The first rank of the smaller world prints
 *   {"release_us":R,"first_us":F,"wrong":W}
 * with the times of the slowest rank, from the kill.
 *   mpirun --with-ft ulfm -n N rival_ulfm FILE VICTIM OP BYTES COUNT
 */
#define _GNU_SOURCE
#include <mpi.h>
#include <mpi-ext.h> /* needs the one above */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { RANKS_MAX = 52, PAGE = 4096 };

typedef struct {
  volatile uint64_t killed_ns;
  volatile uint64_t released_ns[RANKS_MAX];
  volatile uint64_t first_ns[RANKS_MAX];
} notes_t;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* One all-reduce in which each rank contributes a bit of its own; 1: correct, 0: wrong values, -1:
 * an error of MPI. */
static int reduce_bits(MPI_Comm comm, int bit, double expected, double* in, double* out, int count) {
  for (int i = 0; i < count; ++i) {
    in[i] = (double)(1ULL << bit);
    out[i] = -1;
  }
  if (MPI_Allreduce(in, out, count, MPI_DOUBLE, MPI_SUM, comm) != MPI_SUCCESS) return -1;
  for (int i = 0; i < count; ++i) {
    if (out[i] != expected) return 0;
  }
  return 1;
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank, ranks;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (argc < 6 || ranks > RANKS_MAX) MPI_Abort(MPI_COMM_WORLD, 64);
  int victim = atoi(argv[2]), op = atoi(argv[3]), count = atoi(argv[5]), wrong = 0;
  size_t bytes = strtoull(argv[4], NULL, 10);
  int file = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0 || ftruncate(file, sizeof(notes_t)) != 0) MPI_Abort(MPI_COMM_WORLD, 1);
  notes_t* notes = mmap(NULL, sizeof *notes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  char* resident = NULL;
  if (bytes > 0) {
    resident = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  if (notes == MAP_FAILED || resident == MAP_FAILED) MPI_Abort(MPI_COMM_WORLD, 1);
  for (size_t at = 0; at < bytes; at += PAGE) ((volatile char*)resident)[at] = 1;
  double* in = calloc((size_t)count, sizeof *in);
  double* out = calloc((size_t)count, sizeof *out);
  double all = 0;
  for (int r = 0; r < ranks; ++r) all += (double)(1ULL << r);

  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Barrier(MPI_COMM_WORLD);
  int outcome = 1;
  for (int i = 1; outcome >= 0 && i <= op; ++i) {
    if (rank == victim && i == op) {
      notes->killed_ns = now_ns();
      kill(getpid(), SIGKILL);
    }
    outcome = reduce_bits(MPI_COMM_WORLD, rank, all, in, out, count);
    wrong += outcome == 0;
  }
  notes->released_ns[rank] = now_ns();
  MPIX_Comm_revoke(MPI_COMM_WORLD);
  MPI_Comm smaller = MPI_COMM_NULL;
  /* A shrink, the operation again, and an agreement that everybody has it: what a program has to do
   * to go on. */
  int flag = 0;
  while (!flag) {
    if (MPIX_Comm_shrink(MPI_COMM_WORLD, &smaller) != MPI_SUCCESS) continue;
    MPI_Comm_set_errhandler(smaller, MPI_ERRORS_RETURN);
    outcome = reduce_bits(smaller, rank, all - (double)(1ULL << victim), in, out, count);
    if (outcome == 1) notes->first_ns[rank] = now_ns();
    wrong += outcome == 0;
    flag = outcome >= 0;
    if (MPIX_Comm_agree(smaller, &flag) != MPI_SUCCESS) flag = 0;
  }
  int smaller_rank = -1;
  MPI_Comm_rank(smaller, &smaller_rank);
  MPI_Barrier(smaller);
  if (smaller_rank == 0) {
    uint64_t released = 0, first = 0;
    int complete = notes->killed_ns != 0 && wrong == 0;
    for (int r = 0; r < ranks; ++r) {
      if (r == victim) continue;
      if (notes->released_ns[r] > released) released = notes->released_ns[r];
      if (notes->first_ns[r] > first) first = notes->first_ns[r];
      complete = complete && notes->first_ns[r] != 0;
    }
    printf("{\"release_us\":%.3f,\"first_us\":%.3f,\"wrong\":%d}\n",
           (double)(released - notes->killed_ns) / 1e3, (double)(first - notes->killed_ns) / 1e3,
           complete ? 0 : 1);
    fflush(stdout);
  }
  MPI_Barrier(smaller);
  _exit(0); /* MPI_Finalize would wait for the one that is gone */
}
