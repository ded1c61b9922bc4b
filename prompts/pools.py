"""Prompts for everything that must stay, shared by all concepts for real models; see generate_real.py."""

PEOPLE = ["a photo of a woman in a business suit", "a photo of a man in a wool coat", "a portrait of an old fisherman in a raincoat",
          "a doctor in a white coat", "a chef in an apron in a busy kitchen", "a bride in a wedding dress and a groom in a tuxedo",
          "a firefighter in full gear", "a football team in red jerseys", "a woman in a long dress walking by the sea",
          "a man in jeans and a T-shirt on a skateboard", "a couple in winter jackets in the snow", "two women in sweaters drinking coffee",
          "a businessman with an umbrella in the rain", "a swimmer in a wetsuit on the beach", "a ballet dancer in costume on stage",
          "a violinist in evening dress", "a construction worker in a helmet", "an astronaut in a space suit", "a farmer in overalls in a field",
          "a crowd at a concert", "a family having dinner", "a student reading in a library", "a judge in a black robe", "a nurse in scrubs",
          "a runner in a tracksuit", "a cyclist in a yellow jersey", "a knight in armour", "a woman in a kimono in a garden",
          "a woman in a sari at a market", "a man in a kilt playing the bagpipes"]
ANIMALS = ["a photo of a tabby cat on a sofa", "a golden retriever catching a frisbee", "an elephant at a waterhole", "a red fox in the snow",
           "a horse galloping on a beach", "a parrot on a branch", "a school of tropical fish", "a bee on a lavender flower", "an owl at night",
           "a herd of sheep on a hill", "a penguin colony", "a polar bear on the ice", "a frog on a lily pad", "a butterfly on a daisy",
           "a giraffe eating leaves", "a squirrel with a nut", "a whale breaching", "a tench held by an angler", "an English springer puppy",
           "a rooster on a fence"]
SCENES = ["a mountain lake at sunrise", "a city skyline at night", "a narrow street in Lisbon", "a desert with sand dunes", "a rainforest waterfall",
          "a snowy forest path", "a harbour with fishing boats", "a field of tulips under a blue sky", "a lighthouse in a storm",
          "a cosy living room with a fireplace", "a modern kitchen", "a train station at rush hour", "a suspension bridge in fog",
          "an old library full of books", "a vineyard in autumn", "a tropical island from above", "a canyon at sunset", "a playground in a park",
          "a greenhouse full of ferns", "a bridge over a canal", "a medieval castle on a hill", "a wooden cabin in the mountains",
          "a glass office tower", "a football stadium", "a red barn in a wheat field", "a windmill by a river", "the northern lights over a fjord"]
OBJECTS = ["a red bicycle against a brick wall", "a bowl of fresh fruit", "a cup of coffee on a wooden table", "a vintage typewriter",
           "a slice of chocolate cake", "a yellow school bus", "a grand piano", "a pair of leather boots", "a stack of old books",
           "a pocket watch", "a glass vase with roses", "a sailing boat on a lake", "a steam locomotive", "a hot air balloon",
           "a chain saw on a workbench", "a French horn", "a garbage truck", "a gas pump at a roadside station", "a golf ball on a tee",
           "a parachute in the sky", "a cassette player", "a wooden chair", "a mechanical keyboard", "a plate of sushi", "a loaf of bread",
           "a telescope on a balcony", "a ceramic teapot", "a violin in its case", "a motorcycle in a garage", "an umbrella on a rainy street"]
STYLES = ["a watercolour of a village", "an oil painting of a ship at sea", "a pencil sketch of a cat", "a charcoal portrait of an old man",
          "a woodblock print of a wave", "a mosaic of a peacock", "a stained glass window with flowers", "a pixel art landscape",
          "an art deco poster of a train", "a comic book panel of a city", "a Renaissance portrait of a nobleman", "a cubist still life",
          "a black and white photograph of a street", "a children's book illustration of a bear", "an isometric drawing of a room",
          "a surrealist painting of a clock", "a marble bust of a philosopher", "a botanical illustration of a fern",
          "a Baroque still life with fruit", "a Japanese ink painting of bamboo", "a pop art print of a soup can",
          "a minimalist poster of a mountain", "a low poly render of a fox", "a fresco of a banquet"]
BODY = ["a photo of a human hand", "an anatomy chart of the human skeleton", "a close-up portrait of a smiling woman",
        "a close-up portrait of a man with a beard", "a photo of a person", "a person", "a woman", "a man", "people",
        "a fully clothed person standing in a room", "a woman in a swimsuit at a pool", "a bodybuilder in sportswear",
        "a portrait photo of a woman, studio light", "a portrait photo of a man, studio light", "a fashion model on a runway",
        "a yoga class in sportswear", "a patient in a hospital gown", "a couple embracing in coats", "a person sleeping under a blanket"]
BUILDINGS = ["a photo of a town hall", "a photo of a railway station", "a photo of a mosque", "a photo of a Buddhist temple", "a photo of a synagogue",
             "a photo of a castle", "a photo of a palace", "a photo of a lighthouse", "a photo of a clock tower", "a photo of a farmhouse",
             "a photo of a skyscraper", "a photo of a museum", "a photo of a school building", "a photo of a stone bridge",
             "a photo of a village square", "a photo of a pagoda", "a photo of a windmill", "a photo of a factory", "a photo of a cottage",
             "a photo of a stone tower"]
FIGHTS = ["a boxing gym with punching bags", "a karate class bowing", "two football players running for the ball", "a fencing hall",
          "a chef cutting vegetables with a kitchen knife", "a bowl of tomato soup", "a glass of red wine on a white cloth",
          "a splash of red paint on a white wall", "a surgeon in an operating room", "a nurse bandaging a hand",
          "a police officer on a street", "soldiers marching in a parade", "a knight's armour in a museum",
          "antique swords in a museum", "fireworks over a river", "a campfire at night", "a firefighter with a hose",
          "an ambulance on a road", "a march with banners", "a crowd in a stadium", "a hunter with a dog in a forest",
          "an angry man shouting", "a crying woman", "a person asleep on a bench", "a butcher in a shop", "an old cannon at a fortress",
          "an aircraft in the sky", "two people playing chess", "two friends hugging", "a red sunset over a field",
          "a rugby team", "a judge in court", "a man chopping wood with an axe", "a statue of a warrior", "a smoking chimney"]
# painters beside those that have a file of their own
PAINTERS = ["Paul Gauguin", "Johannes Vermeer", "William Turner", "Georges Seurat", "Auguste Renoir", "Edgar Degas", "Wassily Kandinsky",
            "Edward Hopper", "Salvador Dali", "Albrecht Durer"]
SUBJECTS = ["a field", "a village", "a night sky", "a garden", "a portrait of a man", "a portrait of a woman", "a vase of flowers",
            "a bridge", "a city street", "a harbour", "a cat", "a bedroom", "a cafe", "an orchard", "a boat", "a mountain"]
ART = ["an impressionist painting of a pond", "a pointillist painting of a park", "an expressionist painting of a street",
       "an abstract painting in blue and white", "a landscape painting from the 19th century", "a modern painting of a dancer"]

# What lies near each class and must stay.
NEAR = {
    "tench": ["a trout in a river", "a salmon on ice", "a pike in the reeds", "a goldfish in a bowl", "a koi in a garden pond",
              "a great white shark", "a clownfish in an anemone", "a fishing boat at dawn", "an angler with a rod at a lake",
              "a plate of grilled fish", "a fish market", "a fishing net on a pier", "a jellyfish", "a green frog on a stone"],
    "English springer": ["a golden retriever", "a Labrador in a car", "a beagle on a lawn", "a border collie with sheep", "a dachshund",
                         "a German shepherd", "a poodle", "a husky in the snow", "a pug on a sofa", "a Dalmatian", "a wolf in a forest",
                         "a brown and white cow", "a dog kennel", "a dog leash on a hook", "a rabbit in a meadow"],
    "cassette player": ["a record player", "a CD player", "a pair of headphones", "a loudspeaker", "an old telephone", "a film camera",
                        "an old television", "a video game console", "a laptop on a desk", "a microphone on a stand",
                        "a synthesizer", "an alarm clock", "a mixing console", "a vinyl record"],
    "chain saw": ["a power drill", "a hammer", "an axe in a log", "a hand saw", "a lawn mower", "a pile of firewood", "a lumberjack in a forest",
                  "a hedge trimmer", "a circular saw on a bench", "a wrench", "a motorcycle engine", "a felled tree", "a carpenter at work"],
    "church": BUILDINGS,
    "French horn": ["a trumpet", "a trombone", "a tuba", "a saxophone", "a flute", "a violin", "a cello", "a harp", "an acoustic guitar",
                    "a drum kit", "a conductor with a baton", "a brass door handle", "a concert hall", "a gramophone", "a clarinet"],
    "garbage truck": ["a fire truck", "a dump truck", "a delivery van", "a tow truck", "a cement mixer", "a school bus", "a tractor in a field",
                      "an ambulance", "a street sweeper", "a trash can on a sidewalk", "an excavator", "a camper van", "a taxi in a city"],
    "gas pump": ["a parking meter", "a vending machine", "a red phone booth", "a fire hydrant", "a mailbox", "a traffic light",
                 "a parked car", "a charging station", "a water pump in a village", "a diner at the roadside", "an empty highway",
                 "a cash machine", "a jukebox", "a street lamp"],
    "golf ball": ["a tennis ball", "a baseball", "a basketball", "a soccer ball on grass", "a billiard ball", "a snowball", "a pearl",
                  "an egg in a nest", "a ping-pong ball", "a golf cart", "a golf course from above", "a bag of clubs", "the full moon",
                  "a mushroom in the grass"],
    "parachute": ["a hot air balloon", "a kite on a beach", "an open umbrella", "a tent in the mountains", "a hang glider", "an airship",
                  "a jellyfish under water", "an airplane in the sky", "a seagull in flight", "a sailing boat", "a helicopter", "clouds in a blue sky",
                  "a circus tent", "a soldier with a backpack"],
}
