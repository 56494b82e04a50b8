/* MPI as regroup-perf measures it: waits for commands on a pipe of its own, so that nobody spins
 * between its turns, and measures and checks as perf/measure.cpp does. perf/rivals.hpp has the
 * protocol.
 *   mpirun -n N rival_mpi DIRECTORY
 */
#define _GNU_SOURCE
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { PERIOD = 509 };

typedef struct {
  char collective[32], dtype[16], op[16], mode[16];
  int root, in_place;
  size_t count;
  long iterations, warmups, checks;
} command_t;

typedef struct {
  command_t c;
  int rank, ranks;
  MPI_Datatype type;
  MPI_Op op;
  size_t unit, in_count, out_count;
  char *in, *out;
  uint64_t salt;
} bench_t;

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static double cpu_seconds(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
         (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static double contribution(int is_prod, int rank, size_t index, uint64_t salt) {
  size_t position = index % PERIOD + salt * 11 + (size_t)rank * 13;
  if (is_prod) return rank < 6 && position % 3 == 0 ? 2 : 1;
  return (double)(position % 7 + 1);
}

static double combined(const bench_t* b, size_t index) {
  int is_prod = strcmp(b->c.op, "prod") == 0;
  double value = contribution(is_prod, 0, index, b->salt);
  for (int r = 1; r < b->ranks; ++r) {
    double next = contribution(is_prod, r, index, b->salt);
    if (strcmp(b->c.op, "min") == 0) {
      if (next < value) value = next;
    } else if (strcmp(b->c.op, "max") == 0) {
      if (next > value) value = next;
    } else if (is_prod) {
      value *= next;
    } else {
      value += next;
    }
  }
  return value;
}

static void put(const bench_t* b, char* to, double value) {
  if (b->type == MPI_DOUBLE) *(double*)to = value;
  if (b->type == MPI_FLOAT) *(float*)to = (float)value;
  if (b->type == MPI_INT32_T) *(int32_t*)to = (int32_t)value;
  if (b->type == MPI_INT64_T) *(int64_t*)to = (int64_t)value;
  if (b->type == MPI_UINT8_T) *(uint8_t*)to = (uint8_t)value;
}

static int is(const bench_t* b, const char* from, double value) {
  char wanted[16];
  put(b, wanted, value);
  return memcmp(from, wanted, b->unit) == 0;
}

static int reduces(const char* c) {
  return !strcmp(c, "all_reduce") || !strcmp(c, "reduce") || !strcmp(c, "reduce_scatter");
}

static void fill(bench_t* b) {
  if (b->in != b->out) memset(b->out, 0xee, b->out_count * b->unit);
  if (!strcmp(b->c.collective, "broadcast") && b->rank != b->c.root) {
    memset(b->out, 0xee, b->out_count * b->unit);
    return;
  }
  int is_prod = reduces(b->c.collective) && !strcmp(b->c.op, "prod");
  for (size_t i = 0; i < b->in_count; ++i) {
    put(b, b->in + i * b->unit, contribution(is_prod, b->rank, i, b->salt));
  }
}

static uint64_t count_wrong(const bench_t* b) {
  const char* c = b->c.collective;
  uint64_t wrong = 0;
  if (!strcmp(c, "barrier") || (!strcmp(c, "reduce") && b->rank != b->c.root)) return 0;
  size_t first = !strcmp(c, "reduce_scatter") ? (size_t)b->rank * b->c.count : 0;
  for (size_t i = 0; i < b->out_count; ++i) {
    double wanted = 0;
    if (!strcmp(c, "broadcast")) wanted = contribution(0, b->c.root, i, b->salt);
    if (!strcmp(c, "sendrecv"))
      wanted = contribution(0, (b->rank + b->ranks - 1) % b->ranks, i, b->salt);
    if (!strcmp(c, "all_gather"))
      wanted = contribution(0, (int)(i / b->c.count), i % b->c.count, b->salt);
    if (reduces(c)) wanted = combined(b, first + i);
    wrong += !is(b, b->out + i * b->unit, wanted);
  }
  return wrong;
}

static int once(const bench_t* b) {
  const char* c = b->c.collective;
  int n = (int)b->c.count;
  const void* in = b->c.in_place ? MPI_IN_PLACE : b->in;
  if (!strcmp(c, "all_reduce"))
    return MPI_Allreduce(in, b->out, n, b->type, b->op, MPI_COMM_WORLD);
  if (!strcmp(c, "reduce")) {
    const void* mine = b->c.in_place && b->rank == b->c.root ? MPI_IN_PLACE : b->in;
    return MPI_Reduce(mine, b->out, n, b->type, b->op, b->c.root, MPI_COMM_WORLD);
  }
  if (!strcmp(c, "broadcast")) return MPI_Bcast(b->out, n, b->type, b->c.root, MPI_COMM_WORLD);
  if (!strcmp(c, "all_gather"))
    return MPI_Allgather(b->in, n, b->type, b->out, n, b->type, MPI_COMM_WORLD);
  if (!strcmp(c, "reduce_scatter"))
    return MPI_Reduce_scatter_block(in, b->out, n, b->type, b->op, MPI_COMM_WORLD);
  if (!strcmp(c, "barrier")) return MPI_Barrier(MPI_COMM_WORLD);
  if (!strcmp(c, "sendrecv"))
    return MPI_Sendrecv(b->in, n, b->type, (b->rank + 1) % b->ranks, 0, b->out, n, b->type,
                        (b->rank + b->ranks - 1) % b->ranks, 0, MPI_COMM_WORLD,
                        MPI_STATUS_IGNORE);
  return MPI_ERR_OTHER;
}

/* The reason why this cannot be measured, or NULL. */
static const char* prepare(bench_t* b) {
  const char* d = b->c.dtype;
  b->type = !strcmp(d, "f64")   ? MPI_DOUBLE
            : !strcmp(d, "f32") ? MPI_FLOAT
            : !strcmp(d, "i32") ? MPI_INT32_T
            : !strcmp(d, "i64") ? MPI_INT64_T
            : !strcmp(d, "u8")  ? MPI_UINT8_T
                                : MPI_DATATYPE_NULL;
  if (b->type == MPI_DATATYPE_NULL) return "this MPI program has no such type";
  const char* o = b->c.op;
  b->op = !strcmp(o, "sum")    ? MPI_SUM
          : !strcmp(o, "prod") ? MPI_PROD
          : !strcmp(o, "min")  ? MPI_MIN
          : !strcmp(o, "max")  ? MPI_MAX
                               : MPI_OP_NULL;
  if (b->op == MPI_OP_NULL) return "this MPI program has no such operation";
  int unit = 0;
  MPI_Type_size(b->type, &unit);
  b->unit = (size_t)unit;
  const char* c = b->c.collective;
  if (!strcmp(c, "gather") || !strcmp(c, "scatter") || strstr(c, "all_to_all") || strstr(c, "_v"))
    return "this MPI program has no such collective";
  size_t p = (size_t)b->ranks;
  b->in_count = !strcmp(c, "reduce_scatter") ? b->c.count * p : b->c.count;
  b->out_count = !strcmp(c, "all_gather") ? b->c.count * p : b->c.count;
  if (b->c.in_place && !strcmp(c, "all_gather")) return "all_gather is not measured in place here";
  size_t in_bytes = b->in_count * b->unit + 64, out_bytes = b->out_count * b->unit + 64;
  int one = !strcmp(c, "broadcast") || b->c.in_place;
  b->out = malloc(one && in_bytes > out_bytes ? in_bytes : out_bytes);
  b->in = one ? b->out : malloc(in_bytes);
  if (!b->in || !b->out) return "out of memory";
  memset(b->out, 0, out_bytes);
  fill(b);
  return NULL;
}

static void release(bench_t* b) {
  if (b->in != b->out) free(b->in);
  free(b->out);
  b->in = b->out = NULL;
}

static void run_block(bench_t* b, FILE* result) {
  long values = strcmp(b->c.mode, "isolated") ? 1 : b->c.iterations;
  double* us = calloc((size_t)values, sizeof *us);
  double* slowest = calloc((size_t)values, sizeof *slowest);
  for (long i = 0; i < b->c.warmups; ++i) once(b);
  MPI_Barrier(MPI_COMM_WORLD);
  double cpu = cpu_seconds(), all_cpu = 0;
  if (values == 1 && strcmp(b->c.mode, "isolated")) {
    double begin = now_us();
    for (long i = 0; i < b->c.iterations; ++i) once(b);
    us[0] = (now_us() - begin) / (double)b->c.iterations;
  } else {
    for (long i = 0; i < values; ++i) {
      MPI_Barrier(MPI_COMM_WORLD);
      double begin = now_us();
      once(b);
      us[i] = now_us() - begin;
    }
  }
  cpu = cpu_seconds() - cpu;
  MPI_Reduce(us, slowest, (int)values, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
  MPI_Reduce(&cpu, &all_cpu, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
  uint64_t wrong = 0, all_wrong = 0;
  for (long i = 0; i < b->c.checks; ++i) {
    ++b->salt;
    fill(b);
    once(b);
    wrong += count_wrong(b);
  }
  MPI_Reduce(&wrong, &all_wrong, 1, MPI_UINT64_T, MPI_SUM, 0, MPI_COMM_WORLD);
  if (result) {
    fprintf(result, "{\"us\":[");
    for (long i = 0; i < values; ++i) fprintf(result, "%s%.4f", i ? "," : "", slowest[i]);
    fprintf(result, "],\"cpu_s\":%.6f,\"wrong\":%llu,\"checked\":%ld}\n", all_cpu,
            (unsigned long long)all_wrong, b->c.checks);
    fflush(result);
  }
  free(us);
  free(slowest);
}

static int parse(const char* line, command_t* c) {
  memset(c, 0, sizeof *c);
  return sscanf(line, "block %31s %15s %15s %d %zu %d %15s %ld %ld %ld", c->collective, c->dtype,
                c->op, &c->root, &c->count, &c->in_place, c->mode, &c->iterations, &c->warmups,
                &c->checks) == 10;
}

static int same_workload(const command_t* a, const command_t* b) {
  return !strcmp(a->collective, b->collective) && !strcmp(a->dtype, b->dtype) &&
         !strcmp(a->op, b->op) && a->root == b->root && a->count == b->count &&
         a->in_place == b->in_place;
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  bench_t bench;
  memset(&bench, 0, sizeof bench);
  MPI_Comm_rank(MPI_COMM_WORLD, &bench.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &bench.ranks);
  char path[512], version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  snprintf(path, sizeof path, "%s/command.%d", argc > 1 ? argv[1] : ".", bench.rank);
  FILE* commands = fopen(path, "re");
  snprintf(path, sizeof path, "%s/result", argc > 1 ? argv[1] : ".");
  FILE* result = bench.rank == 0 ? fopen(path, "we") : NULL;
  if (!commands || (bench.rank == 0 && !result)) {
    fprintf(stderr, "rival_mpi: no pipes in %s\n", argc > 1 ? argv[1] : ".");
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Barrier(MPI_COMM_WORLD);
  int length = 0;
  MPI_Get_library_version(version, &length);
  for (char* c = version; *c; ++c) {
    if (*c == '\n' || *c == '"' || *c == '\\' || *c == '\t') *c = ' ';
  }
  version[60] = '\0';
  if (result) {
    fprintf(result, "{\"ready\":\"%s\"}\n", version);
    fflush(result);
  }
  char line[512];
  const char* why = "no command yet";
  while (fgets(line, sizeof line, commands) && strcmp(line, "end\n") != 0) {
    command_t next;
    if (!parse(line, &next)) break;
    if (!same_workload(&next, &bench.c)) {
      release(&bench);
      bench.c = next;
      why = prepare(&bench);
    }
    bench.c = next;
    if (!why) {
      run_block(&bench, result);
    } else if (result) {
      fprintf(result, "{\"error\":\"%s\"}\n", why);
      fflush(result);
    }
  }
  MPI_Finalize();
  return 0;
}
