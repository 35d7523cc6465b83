/* Python's door to core.c: checks every argument, lets go of the interpreter lock, calls. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "core.h"

#include <string.h> /* Python.h brings it only without the limited API */

#define MAX_MOVES 16

static int is_float32(const Py_buffer *view)
{
    return view->itemsize == 4 && view->format != NULL && strcmp(view->format, "f") == 0;
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

static PyObject *add_moves(PyObject *self, PyObject *args)
{
    PyObject *weights, *index_object, *block_object, *seed_sequence, *scale_sequence;
    unsigned long long tensor_index, first_block;
    uint64_t seeds[MAX_MOVES];
    float scales[MAX_MOVES];
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
    if (!is_float32(&view)) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_TypeError, "weights: wanted a float32 array.");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    pairzero_add_moves(view.buf, (size_t)view.len / 4, tensor_index, first_block, seeds, scales,
                       (size_t)count);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyObject *max_abs(PyObject *self, PyObject *weights)
{
    Py_buffer view;
    float result;

    (void)self;
    if (PyObject_GetBuffer(weights, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0)
        return NULL;
    if (!is_float32(&view)) {
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
