/* Python's door to core.c: checks every argument, lets go of the interpreter lock, calls. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "core.h"

#include <string.h> /* Python.h brings it only without the limited API */

#define MAX_MOVES 16

/* Types by the names that buffers give them; int64 is called l or q. */
#define FLOAT32 "f"
#define INT16 "h"
#define INT8 "b"

static int holds(const Py_buffer *view, const char *type)
{
    return view->format != NULL && strcmp(view->format, type) == 0;
}

static int holds_int64(const Py_buffer *view)
{
    return view->itemsize == 8 && (holds(view, "l") || holds(view, "q"));
}

/* Fills out[MAX_MOVES]; returns the count, or -1 with an exception set. */
static Py_ssize_t read_seeds(PyObject *sequence, uint64_t *out)
{
    Py_ssize_t count = PySequence_Size(sequence);
    if (count > MAX_MOVES) {
        PyErr_Format(PyExc_ValueError, "seeds: got %zd, wanted at most %d.", count, MAX_MOVES);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        if (item == NULL)
            return -1;
        out[i] = PyLong_AsUnsignedLongLong(item);
        Py_DECREF(item);
        if (PyErr_Occurred())
            return -1;
    }
    return count;
}

static Py_ssize_t read_scales(PyObject *sequence, float *out, Py_ssize_t wanted)
{
    Py_ssize_t count = PySequence_Size(sequence);
    if (count < 0)
        return -1;
    if (count != wanted) {
        PyErr_Format(PyExc_ValueError, "scales: got %zd, wanted %zd, one a seed.", count, wanted);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        if (item == NULL)
            return -1;
        out[i] = (float)PyFloat_AsDouble(item);
        Py_DECREF(item);
        if (PyErr_Occurred())
            return -1;
    }
    return count;
}

/* Moves of whole numbers; -1 with an exception set where one is no int16. */
static int as_quanta(const float *scales, Py_ssize_t count, int16_t *out)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!(scales[i] >= INT16_MIN && scales[i] <= INT16_MAX) ||
            scales[i] != (float)(int16_t)scales[i]) {
            PyErr_SetString(PyExc_ValueError,
                            "scales: wanted whole numbers of 16 bits for int16 weights.");
            return -1;
        }
        out[i] = (int16_t)scales[i];
    }
    return 0;
}

static PyObject *add_moves(PyObject *self, PyObject *args)
{
    PyObject *weights, *index_object, *block_object, *seed_sequence, *scale_sequence;
    unsigned long long tensor_index, first_block;
    uint64_t seeds[MAX_MOVES];
    float scales[MAX_MOVES];
    int16_t quanta[MAX_MOVES];
    Py_buffer view;
    Py_ssize_t count;

    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOO:add_moves", &weights, &index_object, &block_object,
                          &seed_sequence, &scale_sequence))
        return NULL;
    /* Not the format K, which takes any integer modulo 2^64. */
    tensor_index = PyLong_AsUnsignedLongLong(index_object);
    if (PyErr_Occurred())
        return NULL;
    first_block = PyLong_AsUnsignedLongLong(block_object);
    if (PyErr_Occurred())
        return NULL;
    if ((count = read_seeds(seed_sequence, seeds)) < 0 ||
        read_scales(scale_sequence, scales, count) < 0)
        return NULL;
    if (PyObject_GetBuffer(weights, &view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0)
        return NULL;
    if (!holds(&view, FLOAT32) && !holds(&view, INT16)) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_TypeError, "weights: wanted a float32 or an int16 array.");
        return NULL;
    }
    if (holds(&view, INT16) && as_quanta(scales, count, quanta) < 0) {
        PyBuffer_Release(&view);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    if (view.itemsize == 4)
        pairzero_add_moves(view.buf, (size_t)view.len / 4, tensor_index, first_block, seeds, scales,
                           (size_t)count);
    else
        pairzero_add_whole_moves(view.buf, (size_t)view.len / 2, tensor_index, first_block, seeds,
                                 quanta, (size_t)count);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

/* What expand_rows reads and writes, by place in `views`. */
enum { OUT, STORED, ROWS, ROW_SCALES, NUM_VIEWS };

/* 0 if sizes and types fit; else -1 with an exception set. Rows are looked at one by one: the kernel
 * reads where they say. */
static int check_expansion(const Py_buffer views[NUM_VIEWS])
{
    const Py_buffer *stored = &views[STORED];
    const Py_ssize_t num_rows = views[ROWS].len / 8;
    const int64_t *rows = views[ROWS].buf;

    if (!holds(&views[OUT], FLOAT32) || !holds(&views[ROW_SCALES], FLOAT32) ||
        !holds_int64(&views[ROWS]) || !(holds(stored, INT16) || holds(stored, INT8))) {
        PyErr_SetString(PyExc_TypeError, "expand_rows: wanted out and row_scales as float32, stored "
                                         "as int16 or int8, rows as int64.");
        return -1;
    }
    if (stored->ndim != 2 || views[ROW_SCALES].len / 4 != stored->shape[0] ||
        views[OUT].len / 4 != num_rows * stored->shape[1]) {
        PyErr_SetString(PyExc_ValueError, "expand_rows: wanted stored [n, width], n row_scales, and "
                                          "width numbers in out for each of the rows.");
        return -1;
    }
    for (Py_ssize_t i = 0; i < num_rows; i++)
        if (rows[i] < 0 || rows[i] >= stored->shape[0]) {
            PyErr_Format(PyExc_IndexError, "rows: got %lld, there are %zd.", (long long)rows[i],
                         stored->shape[0]);
            return -1;
        }
    return 0;
}

static PyObject *expand_rows(PyObject *self, PyObject *args)
{
    PyObject *objects[NUM_VIEWS], *index_object, *seed_sequence, *scale_sequence;
    unsigned long long tensor_index;
    uint64_t seeds[MAX_MOVES];
    float scales[MAX_MOVES];
    Py_buffer views[NUM_VIEWS];
    Py_ssize_t count;
    int num_open = 0, is_fit = 0;

    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOOOO:expand_rows", &objects[OUT], &objects[STORED],
                          &objects[ROWS], &index_object, &objects[ROW_SCALES], &seed_sequence,
                          &scale_sequence))
        return NULL;
    tensor_index = PyLong_AsUnsignedLongLong(index_object);
    if (PyErr_Occurred())
        return NULL;
    if ((count = read_seeds(seed_sequence, seeds)) < 0 ||
        read_scales(scale_sequence, scales, count) < 0)
        return NULL;
    for (; num_open < NUM_VIEWS; num_open++) {
        const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (num_open == OUT ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(objects[num_open], &views[num_open], flags) < 0)
            break;
    }
    if (num_open == NUM_VIEWS && check_expansion(views) == 0) {
        is_fit = 1;
        Py_BEGIN_ALLOW_THREADS
        pairzero_expand_rows(views[OUT].buf, views[STORED].buf, (size_t)views[STORED].itemsize,
                             views[ROWS].buf, (size_t)views[ROWS].len / 8,
                             (size_t)views[STORED].shape[1], tensor_index, views[ROW_SCALES].buf,
                             seeds, scales, (size_t)count);
        Py_END_ALLOW_THREADS
    }
    while (num_open > 0)
        PyBuffer_Release(&views[--num_open]);
    if (!is_fit)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *max_abs(PyObject *self, PyObject *weights)
{
    Py_buffer view;
    float result;

    (void)self;
    if (PyObject_GetBuffer(weights, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0)
        return NULL;
    if (!holds(&view, FLOAT32)) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_TypeError, "weights: wanted a float32 array.");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = pairzero_max_abs(view.buf, (size_t)view.len / 4);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return PyFloat_FromDouble(result);
}

static PyObject *philox4x64_10(PyObject *self, PyObject *args)
{
    unsigned long long c[4], k[2];
    uint64_t out[4];

    (void)self;
    if (!PyArg_ParseTuple(args, "(KKKK)(KK):philox4x64_10", &c[0], &c[1], &c[2], &c[3], &k[0],
                          &k[1]))
        return NULL;
    pairzero_philox4x64_10((uint64_t[]){c[0], c[1], c[2], c[3]}, (uint64_t[]){k[0], k[1]}, out);
    return Py_BuildValue("(KKKK)", (unsigned long long)out[0], (unsigned long long)out[1],
                         (unsigned long long)out[2], (unsigned long long)out[3]);
}

static PyMethodDef methods[] = {
    {"add_moves", add_moves, METH_VARARGS, "See edge_runtime.kernel.numpy_twin.add_moves."},
    {"expand_rows", expand_rows, METH_VARARGS, "See edge_runtime.kernel.numpy_twin.expand_rows."},
    {"max_abs", max_abs, METH_O, "See edge_runtime.kernel.numpy_twin.max_abs."},
    {"philox4x64_10", philox4x64_10, METH_VARARGS, "One block: counter and key to four words."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "edge_runtime.kernel._native", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModule_Create(&definition);
}
