// What kernels.inl needs from outside its target region.
#pragma once

#include <cmath>
#include <cstring>

#include "philox.h"
#include "stages.h"
#include "stream.h"
