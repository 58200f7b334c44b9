"""The C of threads that share the tasks of a network, for libraries on systems with pthreads."""

from collections.abc import Iterator

from ..memory.rows import RowPlan
from ..memory.tasks import TaskPlan
from .store import CLOSE, OPEN, PARALLEL

# A turn of a waiting loop takes some ten nanoseconds. Threads wait this long for the next inference before they sleep,
# and for each other's rows before they let other processes run.
_IDLE_TURNS, _BUSY_TURNS = 5000, 2000


def threads_code(name: str, plan: TaskPlan) -> str:
    """The functions that run the tasks of a network.

    ``NAME_open()`` starts all threads but one, or returns 0. ``NAME_parallel(pool, arena, in, out)`` runs the network
    as ``NAME_entry`` does, with the caller as one of the threads; only one caller at a time may use a pool.
    ``NAME_close(pool)`` ends the threads. A process that was forked has to open a pool of its own.
    """
    return "\n".join([_head(plan), *_tables(plan), _WAITING, *_work(name, plan.plan), _pool(name), ""])


def _head(plan: TaskPlan) -> str:
    return f"""\
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#define FB_THREADS {plan.threads}
#define FB_TASKS {len(plan.tasks)}
#define FB_GROUPS {len(plan.plan.groups)} /* the input is one more */
#define FB_IDLE {_IDLE_TURNS}
#define FB_BUSY {_BUSY_TURNS}
typedef struct {{ uint16_t group, first, end; uint32_t needs; }} fb_task; /* needs: the first of its needs */
typedef struct {{ uint16_t group, rows; }} fb_need;"""


def _tables(plan: TaskPlan) -> Iterator[str]:
    """The tasks, what they need, and the rows of all groups together."""
    tasks, needs = [], []
    for task in plan.tasks:
        tasks.append(f"{{{task.group}, {task.first}, {task.end}, {len(needs)}}}")
        needs += [f"{{{group}, {rows}}}" for group, rows in task.needs]
    tasks.append(f"{{0, 0, 0, {len(needs)}}}")
    ends = [max(task.end for task in plan.tasks if task.group == group) for group in range(len(plan.plan.groups) + 1)]
    yield "static const fb_task fb_tasks[FB_TASKS + 1] = {\n" + ",\n".join(tasks) + "};"
    yield "static const fb_need fb_needs[] = {\n" + ",\n".join(needs or ["{0, 0}"]) + "};"
    yield f"static const uint16_t fb_ends[FB_GROUPS + 1] = {{{', '.join(map(str, ends))}}};"


_WAITING = """\
#if defined(__x86_64__)
#define FB_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define FB_PAUSE() __asm__ volatile("yield")
#else
#define FB_PAUSE() (void)0
#endif
typedef struct { uint32_t value; char line[124]; } fb_counter; /* on lines of the cache of its own */
typedef struct {
  fb_counter next;                /* the first task that nobody has taken */
  fb_counter done[FB_GROUPS + 1]; /* rows that each group has completed */
  fb_counter run;                 /* number of the inference; a change starts the threads */
  uint32_t sleeping;              /* threads that have to be woken */
  uint32_t stop;
  fb_t *arena;
  const uint8_t *in;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  pthread_t threads[FB_THREADS];
} fb_pool;
static void fb_wait(const fb_counter *done, uint32_t wanted) {
  for (int turn = 0; __atomic_load_n(&done->value, __ATOMIC_ACQUIRE) < wanted; turn++) {
    if (turn < FB_BUSY) FB_PAUSE(); else sched_yield();
  }
}"""


def _work(name: str, plan: RowPlan) -> Iterator[str]:
    """The function of all threads. A thread that comes late may take tasks of the next inference."""
    height = plan.graph.tensors[plan.graph.inputs[0]].shape[1]
    yield f"""\
static void fb_work(fb_pool *p) {{
  uint32_t i;
  while ((i = __atomic_fetch_add(&p->next.value, 1, __ATOMIC_ACQ_REL)) < FB_TASKS) {{
    const fb_task *const task = fb_tasks + i;
    for (uint32_t n = task[0].needs; n < task[1].needs; n++)
      fb_wait(p->done + fb_needs[n].group, fb_needs[n].rows);
    for (int y = task->first; y < task->end; y++) {{
      if (task->group < FB_GROUPS) fb_step(p->arena, task->group, y);
      else fb_arrive(p->arena, y, y < {height} ? {name}_input_row(p->arena, p->in, y) : 0);
    }}
    __atomic_store_n(&p->done[task->group].value, task->end, __ATOMIC_RELEASE);
  }}
}}"""


def _pool(name: str) -> str:
    return f"""\
static void *fb_thread(void *argument) {{
  fb_pool *p = (fb_pool *)argument;
  uint32_t seen = 0;
  for (;;) {{
    for (int turn = 0; turn < FB_IDLE && __atomic_load_n(&p->run.value, __ATOMIC_ACQUIRE) == seen; turn++) FB_PAUSE();
    if (__atomic_load_n(&p->run.value, __ATOMIC_ACQUIRE) == seen) {{
      pthread_mutex_lock(&p->lock);
      __atomic_add_fetch(&p->sleeping, 1, __ATOMIC_SEQ_CST);
      while (__atomic_load_n(&p->run.value, __ATOMIC_SEQ_CST) == seen) pthread_cond_wait(&p->wake, &p->lock);
      __atomic_sub_fetch(&p->sleeping, 1, __ATOMIC_SEQ_CST);
      pthread_mutex_unlock(&p->lock);
    }}
    seen = __atomic_load_n(&p->run.value, __ATOMIC_ACQUIRE);
    if (__atomic_load_n(&p->stop, __ATOMIC_ACQUIRE)) return 0;
    fb_work(p);
  }}
}}
/* Starts the threads on what the pool holds. */
static void fb_start(fb_pool *p) {{
  __atomic_add_fetch(&p->run.value, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&p->sleeping, __ATOMIC_SEQ_CST)) {{
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
  }}
}}
static void fb_end(fb_pool *p, int threads) {{
  __atomic_store_n(&p->stop, 1, __ATOMIC_RELEASE);
  fb_start(p);
  for (int i = 0; i < threads; i++) pthread_join(p->threads[i], 0);
  pthread_cond_destroy(&p->wake);
  pthread_mutex_destroy(&p->lock);
  free(p);
}}
void {name}{CLOSE}(void *pool) {{ fb_end((fb_pool *)pool, FB_THREADS - 1); }}
void *{name}{OPEN}(void) {{
  void *memory;
  fb_pool *p;
  if (posix_memalign(&memory, 128, sizeof(fb_pool))) return 0;
  p = (fb_pool *)memory;
  memset(p, 0, sizeof *p);
  FB_CHOOSE();
  pthread_mutex_init(&p->lock, 0);
  pthread_cond_init(&p->wake, 0);
  for (int i = 0; i < FB_THREADS - 1; i++)
    if (pthread_create(&p->threads[i], 0, fb_thread, p)) {{ fb_end(p, i); return 0; }}
  return p;
}}
void {name}{PARALLEL}(void *pool, void *arena, const uint8_t *in, uint8_t *out) {{
  fb_pool *p = (fb_pool *)pool;
  p->arena = (fb_t *)arena;
  p->in = in;
  for (int g = 0; g <= FB_GROUPS; g++) __atomic_store_n(&p->done[g].value, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&p->next.value, 0, __ATOMIC_RELEASE);
  fb_start(p);
  fb_work(p);
  for (int g = 0; g <= FB_GROUPS; g++) fb_wait(p->done + g, fb_ends[g]);
  {name}_output(arena, out);
}}"""
