// What the generated code includes.
#pragma once
#include "memory.h"
#include "numeric.h"
#include "simt.h"
#include "warp.h"

using namespace ptx;
using simt::Thread;

// At a backward branch: after so many of them another thread gets its turn, so that no loop holds up the launch.
#define BACKWARD(line) \
  if (!--t.fuel) simt::preempt(t, line)
